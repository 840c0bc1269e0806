"""An evaluation of a classifier in numbers: of each class, of the bins of confidence, of each image."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from elsa.core import ConfigError, check_writable, write_then_rename
from elsa.data import Source
from elsa.engine import Calibration, ClassCounts, Predictions

from .pictures import NAME, plain

TABLE = 10  # classes whose confusion matrix the log has room for
HEAD = 8  # letters of a class's name above a column
MOST = 5  # confused pairs that the log lists where there are more classes


def distinct_names(names: Sequence[str], classes: int) -> list[str]:
    """A name of each class, its number where there are no names; what several share is followed by the number."""
    if len(names) != classes:
        return [str(number) for number in range(classes)]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def class_records(counts: ClassCounts, names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes for results.json, in the order of their numbers; accuracy in per cent."""
    columns = zip(names, counts.images.tolist(), counts.correct.tolist(), counts.accuracy.tolist(), strict=True)
    return [dict(name=name, images=images, correct=correct, accuracy=accuracy)
            for name, images, correct, accuracy in columns]  # fmt: skip


def calibration_record(found: Calibration) -> dict[str, Any]:
    """The calibration for results.json; all shares 0 … 1."""
    bins = len(found.images)
    columns = zip(found.images.tolist(), found.confidence.tolist(), found.accuracy.tolist(), strict=True)
    return {
        "ece": found.ece,
        "bins": [dict(above=place / bins, to=(place + 1) / bins, images=images, confidence=confidence, accuracy=right)
                 for place, (images, confidence, right) in enumerate(columns)],
    }  # fmt: skip


def confusion_lines(counts: ClassCounts, names: Sequence[str]) -> Iterator[str]:
    """The confusion matrix for people, or of more than TABLE classes the most confused pairs."""
    if len(names) > TABLE:
        for true, other, images in counts.mistakes[:MOST]:
            yield f"{plain(names[true])} taken for {plain(names[other])}: {images} of {counts.images[true]}"
        return
    first = ["true \\ predicted", *(plain(name, NAME) for name in names)]
    width, column = max(map(len, first)), max(len(str(counts.images.max())), *(len(plain(n, HEAD)) for n in names))
    yield "  ".join([first[0].ljust(width), *(plain(name, HEAD).rjust(column) for name in names), "   right"])
    for name, row, accuracy in zip(first[1:], counts.matrix.tolist(), counts.accuracy.tolist(), strict=True):
        cells = [str(images or "·").rjust(column) for images in row]
        yield "  ".join([name.ljust(width), *cells, "       –" if math.isnan(accuracy) else f"{accuracy:6.2f} %"])


def check_table(path: Path | None) -> None:
    """Raises ConfigError where ``--predictions`` names no CSV file that could be written."""
    if path is None:
        return
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise ConfigError(f"--predictions must be a .csv file, got {path}{', a folder' if path.is_dir() else ''}")
    check_writable(path.parent, "--predictions")


def write_predictions(
    path: Path, predictions: Predictions, source: Source | IterableDataset, names: Sequence[str]
) -> None:
    """A line of each image in the order of the data set: its path, or its number from 0 where it has none, true class,
    and the most probable classes with their probabilities, best first."""
    further = [text for place in range(2, predictions.classes.shape[1] + 1) for text in (f"top{place}", f"p{place}")]

    def write(beside: Path) -> None:
        # A path that is not UTF-8 is written as the bytes that it is.
        with beside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["image", "true", "predicted", "probability", *further])
            columns = (predictions.indices, predictions.targets, predictions.classes, predictions.shares)
            for place, (index, target, classes, shares) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
                named = source.path(index) or index if isinstance(source, Source) else place
                best = (text for number, share in zip(classes, shares, strict=True)
                        for text in (names[number], f"{share:.6g}"))  # fmt: skip
                table.writerow([named, names[target], *best])

    write_then_rename(path, write)
