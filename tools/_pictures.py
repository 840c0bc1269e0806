"""Pictures of a classification run: its curves, and images with what the model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from elsa.data import Source
from elsa.engine import write_then_rename

RIGHT, WRONG = "#1a7f37", "#cf222e"


def save_figure(figure: Figure, path: Path) -> None:
    write_then_rename(path, lambda beside: figure.savefig(beside, format="png", dpi=120))


def draw_curves(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Loss, accuracy and learning rate over epochs, from the records of a run's log."""
    train = [record for record in records if record["kind"] == "train"]
    evaluated = [record for record in records if record["kind"] == "eval"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, accuracy, rate = figure.subplots(1, 3)
    loss.plot([r["epoch"] for r in train], [r["loss"] for r in train], label="training", alpha=0.8)
    loss.plot([r["epoch"] for r in evaluated], [r["loss"] for r in evaluated], "o-", ms=3, label="validation")
    loss.set(title="loss", xlabel="epoch", ylim=(0, None))
    loss.legend()
    for name, label in (("top1", "top-1"), ("top5", "top-5")):
        accuracy.plot([r["epoch"] for r in evaluated], [r[name] for r in evaluated], "o-", ms=3, label=label)
    if evaluated:
        best = max(evaluated, key=lambda record: record["top1"])
        accuracy.annotate(f"best top-1 {best['top1']:.2f} %", (best["epoch"], best["top1"]), (0.4, 0.12),
                          textcoords="axes fraction", arrowprops=dict(arrowstyle="-", alpha=0.4))  # fmt: skip
    accuracy.set(title="validation accuracy", xlabel="epoch", ylabel="%")
    accuracy.legend(loc="center right")
    rate.plot([r["epoch"] for r in train], [r["lr"] for r in train])
    rate.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    for axis in (loss, accuracy, rate):
        axis.grid(alpha=0.3)
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
