"""Pictures: the curves of a run, and images with what a model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from elsa.core import write_then_rename
from elsa.data import Source

RIGHT, WRONG = "#1a7f37", "#cf222e"


def save_figure(figure: Figure, path: Path) -> None:
    write_then_rename(path, lambda beside: figure.savefig(beside, format="png", dpi=120))


def draw_curves(records: Sequence[dict[str, Any]], path: Path, title: str, curves: Sequence[str], metric: str) -> None:
    """Losses, metrics and learning rate over epochs, from the records of a run's log.

    Args:
        curves: names, or their ends, of the numbers of an evaluation to draw; the best of ``metric`` is marked.
    """
    train = [record for record in records if record["kind"] == "train"]
    evaluated = [record for record in records if record["kind"] == "eval"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, score, rate = figure.subplots(1, 3)

    def draw(axis: Any, rows: Sequence[dict[str, Any]], name: str, form: str = "-", **style: Any) -> None:
        axis.plot([row["epoch"] for row in rows], [row.get(name) for row in rows], form, **style)

    for name in [name for name in (train[-1] if train else ()) if "loss" in name]:
        draw(loss, train, name, label="training" if name == "loss" else name, linewidth=2 if name == "loss" else 1)
    told = "validation"
    for record in evaluated[-1:]:
        if "loss" in record:
            draw(loss, evaluated, "loss", "o-", ms=3, label="validation")
        for name in [name for name in record if name.endswith(tuple(curves))]:
            draw(score, evaluated, name, "o-", ms=3, label=name)
        best = max(evaluated, key=lambda row: row[metric])
        score.plot(best["epoch"], best[metric], "*", ms=12, color="black")
        told = f"validation: best {metric} {best[metric]:.4g}"
    draw(rate, train, "lr")
    for axis, name in ((loss, "loss"), (score, told), (rate, "learning rate")):
        axis.set(title=name, xlabel="epoch", ylim=(0, None))
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="lower right" if axis is score else "best")
    save_figure(figure, path)


def draw_predictions(source: Source, rows: Sequence[tuple[int, int, int, float]], path: Path, title: str) -> None:
    """Images with predicted and true class; rows are (index, target, predicted, confidence)."""
    names = source.classes or [str(number) for number in range(1 + max(max(row[1:3]) for row in rows))]
    cells = []
    for index, target, predicted, confidence in rows:
        right = target == predicted
        text = f"{names[predicted]} ({confidence:.0%})" + ("" if right else f"\ntrue: {names[target]}")
        cells.append((source.load(index)[0], text, RIGHT if right else WRONG))
    draw_grid(cells, path, title)


def draw_grid(
    cells: Sequence[tuple[Image.Image, str, str]],
    path: Path,
    title: str,
    columns: int = 10,
    cell: tuple[float, float] = (1.25, 1.6),
) -> None:
    """A grid of images with a coloured line of text above each; cells are (image, text, colour), ``cell`` in inches."""
    columns = min(columns, len(cells))
    lines = -(-len(cells) // columns)
    figure = Figure(figsize=(max(cell[0] * columns, 5), cell[1] * lines + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, (image, text, colour) in zip(axes, cells, strict=False):
        axis.imshow(image, cmap="gray" if image.mode == "L" else None, interpolation="bicubic")
        axis.set_title(text, fontsize=9, color=colour)
    save_figure(figure, path)
