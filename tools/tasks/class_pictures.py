"""Pictures of an evaluation of a classifier: which classes are taken for which, and how calibrated it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from elsa.engine import Calibration, ClassCounts

from .pictures import NAME, RIGHT, WRONG, add_legend, fonts, literal, plain, save_figure

GRID = 20  # classes whose names and numbers a grid has room for
BARS = 25  # pairs and classes that are listed where there are more
BLUE, LIGHT = "#0072B2", "#9ecae1"


def draw_confusion(counts: ClassCounts, names: Sequence[str], path: Path, title: str) -> None:
    """The confusion matrix of few classes; of more than GRID the most confused pairs and the worst classes.

    Args:
        names: of the classes, no two alike.
    """
    labels = [plain(name, NAME) for name in names]
    figure = _matrix(counts, labels) if len(names) <= GRID else _lists(counts, labels)
    literal(figure.suptitle(" ", fontsize=11), plain(title, 100))
    save_figure(figure, path)


def _matrix(counts: ClassCounts, names: Sequence[str]) -> Figure:
    """Numbers are images, colours their share of the true class."""
    side = 0.42 * len(names)
    figure = Figure(figsize=(max(side + 2.6, 4.5), max(side + 1.9, 3.6)), layout="constrained")
    axis = figure.subplots()
    matrix = counts.matrix
    shares = matrix / np.maximum(counts.images, 1)[:, None]
    drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=colour)
    longest = max(map(len, names))
    style = dict(fontsize=8, parse_math=False, fontfamily=fonts())
    axis.set_xticks(range(len(names)), names, rotation=90 if longest > 3 else 0, **style)
    axis.set_yticks(range(len(names)), names, **style)
    axis.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(drawn, ax=axis, label="share of the true class", shrink=0.8)
    return figure


def _lists(counts: ClassCounts, names: Sequence[str]) -> Figure:
    pairs, accuracy = counts.mistakes, counts.accuracy
    worst = [index for index in np.argsort(accuracy, kind="stable") if counts.images[index]]
    figure = Figure(figsize=(13, 0.24 * BARS + 1.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, [(f"{names[true]} taken for {names[other]}", 100 * count / counts.images[true],
                  f"{count} of {counts.images[true]}") for true, other, count in pairs[:BARS]], WRONG)  # fmt: skip
    _bars(right, [(names[index], accuracy[index], f"{counts.correct[index]} of {counts.images[index]}")
                  for index in worst[:BARS]], RIGHT)  # fmt: skip
    left.set_xlabel("% of the true class")
    right.set_xlabel("accuracy, %")
    shown = f"{min(BARS, len(pairs))} of {len(pairs)} pairs that are confused, most images first"
    literal(left.set_title(" ", fontsize=10), shown if len(pairs) else "no class is taken for another")
    literal(right.set_title(" ", fontsize=10), f"{min(BARS, len(worst))} of {len(names)} classes, least accuracy first")
    return figure


def _bars(axis: Any, rows: Sequence[tuple[str, float, str]], colour: str) -> None:
    """(name, value, what is written beside it), the first on top."""
    axis.barh(range(len(rows)), [value for _, value, _ in rows], color=colour, alpha=0.75)
    names = [name for name, _, _ in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8, parse_math=False, fontfamily=fonts())
    for place, (_, value, beside) in enumerate(rows):
        axis.text(value, place, f" {beside}", va="center", fontsize=8)
    axis.set(xlim=(0, 118), xticks=range(0, 101, 20), ylim=(BARS - 0.4, -0.6))
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def draw_calibration(found: Calibration, path: Path, title: str) -> None:
    """The share of right answers by the probability of the answer, and how many images have which."""
    bins = len(found.images)
    width, filled = 1 / bins, found.images > 0
    edges = np.arange(bins)[filled] / bins
    accuracy, confidence = found.accuracy[filled], found.confidence[filled]
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    literal(figure.suptitle(" ", fontsize=11), plain(title, 100))
    curve, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    style: dict[str, Any] = dict(width=width, align="edge", edgecolor="white", linewidth=0.8)
    bars = curve.bar(edges, accuracy, color=LIGHT, **style)
    [diagonal] = curve.plot([0, 1], [0, 1], "--", color="black", linewidth=1)
    gaps = curve.vlines(confidence, accuracy, confidence, color=WRONG, linewidth=2)
    [points] = curve.plot(confidence, accuracy, "o", color=BLUE, ms=5)
    handles = [bars, points, gaps, diagonal]
    names = ["accuracy in the bin", "at the mean confidence", "gap", "perfectly calibrated"]
    add_legend(figure, handles, names, loc="outside lower center", ncols=4, fontsize=8, columnspacing=1)
    histogram.bar(edges, 100 * found.images[filled] / found.images.sum(), color="#666666", **style)
    curve.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    histogram.set(xlabel="confidence: probability of the predicted class", ylabel="% of images")
    for axis in (curve, histogram):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    save_figure(figure, path)
