"""Pictures: the curves of a run, and images with what a model says of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from elsa.core import without_warnings, write_then_rename
from elsa.data import Source

RIGHT, WRONG = "#1a7f37", "#cf222e"
DPI = 120
NAME = 16  # letters of a class's name that a cell of a grid has room for
# Fonts with the scripts that matplotlib's own lacks, as systems name them.
FURTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("Droid Sans Fallback", "Arial Unicode MS", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "SimHei"),
    *("MS Gothic", "Malgun Gothic", "Nirmala UI", "Noto Sans Devanagari", "Noto Sans Arabic", "Unifont"),
)


@cache
def fonts() -> list[str]:
    """Matplotlib's own font, and those on this machine that have what it lacks."""
    present = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FURTHER_FONTS if name in present)]


def plain(name: object, most: int = 60) -> str:
    """A name of a file or a class as one line that can be drawn: what is no text becomes "?" or a space, and of more
    than ``most`` letters the middle is left out."""
    text = str(name).encode("utf-8", "replace").decode()
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= most else f"{text[: most - most // 3 - 1]}…{text[-(most // 3) :]}"


def literal(text: Text, content: str) -> None:
    """Draws the content as it is: ``$`` and ``_`` are letters, no mathematics."""
    text.set_parse_math(False)
    text.set_fontfamily(fonts())
    text.set_text(content)


def add_legend(owner: Any, handles: Sequence[Any], names: Sequence[str], **style: Any) -> None:
    """A legend of a figure or axis whose names are drawn as they are."""
    legend = owner.legend(handles, [str(number) for number in range(len(names))], **style)
    for text, name in zip(legend.get_texts(), names, strict=True):
        literal(text, name)


def save_figure(figure: Figure, path: Path) -> None:
    with without_warnings():  # letters that no font has are drawn as boxes
        write_then_rename(path, lambda beside: figure.savefig(beside, format="png", dpi=DPI))


def as_image(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    with without_warnings():  # letters that no font has are drawn as boxes
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def fitted(image: Image.Image, width: float, height: float) -> Image.Image:
    """An image with no more pixels than a place of so many inches shows."""
    small = image.copy()
    small.thumbnail((max(round(width * DPI), 1), max(round(height * DPI), 1)))
    return small


def denormalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """(C, H, W) as a model gets it → the image that it was."""
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = ((image.float().cpu() * scale + shift) * 255).round().clamp(0, 255).byte().numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def told(shown: int, of: int) -> str:
    """ " (100 of 200)" where not all are shown."""
    return f" ({shown} of {of})" if shown < of else ""


def draw_curves(records: Sequence[dict[str, Any]], path: Path, title: str, curves: Sequence[str], metric: str) -> None:
    """Losses, metrics and learning rate over epochs, from the records of a run's log.

    Args:
        curves: names, or their ends, of the numbers of an evaluation to draw; the best of ``metric`` is marked.
    """
    train = [record for record in records if record["kind"] == "train"]
    evaluated = [record for record in records if record["kind"] == "eval"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    literal(figure.suptitle(" "), plain(title, 100))
    loss, score, rate = figure.subplots(1, 3)
    named: dict[Any, list[tuple[Any, str]]] = {loss: [], score: [], rate: []}

    def draw(
        axis: Any, rows: Sequence[dict[str, Any]], name: str, form: str = "-", label: str = "", **style: Any
    ) -> None:
        values = [math.nan if row.get(name) is None else row[name] for row in rows]
        [line] = axis.plot([row["epoch"] for row in rows], values, form, **style)
        named[axis] += [(line, plain(label))] if label else []

    for name in [name for name in (train[-1] if train else ()) if "loss" in name]:
        draw(loss, train, name, label="training" if name == "loss" else name, linewidth=2 if name == "loss" else 1)
    text = "validation"
    for record in evaluated[-1:]:
        if "loss" in record:
            draw(loss, evaluated, "loss", "o-", ms=3, label="validation")
        for name in [name for name in record if name.endswith(tuple(curves))]:
            draw(score, evaluated, name, "o-", ms=3, label=name)
        if counted := [row for row in evaluated if row.get(metric) is not None and math.isfinite(row[metric])]:
            best = max(counted, key=lambda row: row[metric])
            score.plot(best["epoch"], best[metric], "*", ms=12, color="black")
            text = f"validation: best {metric} {best[metric]:.4g}"
    draw(rate, train, "lr")
    for axis, name in ((loss, "loss"), (score, text), (rate, "learning rate")):
        axis.set(xlabel="epoch", ylim=(0, None))
        literal(axis.set_title(" "), name)
        axis.grid(alpha=0.3)
        if named[axis]:
            where = "lower right" if axis is score else "best"
            add_legend(axis, *zip(*named[axis], strict=True), fontsize=8, loc=where)
    save_figure(figure, path)


def draw_predictions(
    source: Source, rows: Sequence[tuple[int, int, int, float]], path: Path, title: str, of: int
) -> None:
    """Images with predicted and true class; rows are (index, target, predicted, confidence), of ``of`` images."""
    names = source.classes or [str(number) for number in range(1 + max(max(row[1:3]) for row in rows))]

    cells = ((source.load(index)[0], *verdict(names, *found)) for index, *found in rows)
    draw_grid(cells, path, title, of)


def class_text(name: str, confidence: float) -> str:
    return f"{plain(name, NAME)} ({confidence:.0%})"


def verdict(names: Sequence[str], target: int, predicted: int, confidence: float) -> tuple[str, str]:
    """What is said of a prediction, with the true class where that is another, and in which colour."""
    text = class_text(names[predicted], confidence)
    return (text, RIGHT) if predicted == target else (f"{text}\ntrue: {plain(names[target], NAME)}", WRONG)


Cells = Iterable[tuple[Image.Image, str, str]]


def draw_grid(cells: Cells, path: Path, title: str, of: int = 0, **form: Any) -> None:
    """``grid`` as a file."""
    save_figure(grid(cells, title, of, **form), path)


def grid(cells: Cells, title: str, of: int = 0, columns: int = 10, cell: tuple[float, float] = (1.25, 1.6)) -> Figure:
    """A grid of images with coloured lines of text above each.

    Args:
        cells: (image, text, colour); names in the text are ``plain``.
        of: how many images there are; the title says so where not all are shown.
        cell: width and height in inches, into which an image of any shape is fitted.
    """
    shown = [(fitted(image, *cell), text, colour) for image, text, colour in cells]
    columns = min(columns, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(max(cell[0] * columns, 5), cell[1] * lines + 0.5), layout="constrained")
    literal(figure.suptitle(" "), plain(title, 100) + told(len(shown), of))
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, (image, text, colour) in zip(axes, shown, strict=False):
        axis.imshow(image, cmap="gray" if image.mode == "L" else None, interpolation="bicubic")
        literal(axis.set_title(" ", fontsize=9, color=colour), text)
    return figure
