"""ADE20K, or another set of images and label maps in its layout."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..images.sources import check_root
from .report import SPLITS, Look, Progress, Report, look_at, silent, survey

FOLDERS = {"train": "training", "val": "validation"}
PUBLISHED_CLASSES = 150
PUBLISHED_IMAGES = {"train": 20_210, "val": 2_000}
PUBLISHED_NAME = re.compile(r"ADE_(train|val)_\d{8}")
IGNORED = 255  # what 0 becomes under reduce_zero_label
HINT = "; --classes N for another data set"


@dataclass(frozen=True)
class Pair:
    image: Look
    annotation: Look
    labels: tuple[int, ...] = ()


def check_ade20k(
    root: str | Path,
    classes: int | None = None,
    splits: tuple[str, ...] = SPLITS,
    fast: bool = False,
    workers: int = 0,
    progress: Progress = silent,
) -> Report:
    """Checks ``root/images/{training,validation}/*.jpg`` and ``root/annotations/{training,validation}/*.png``.

    Labels are expected as published: 0 unlabelled, 1 … N the classes (``reduce_zero_label`` makes that 255, 0 … N−1).

    Args:
        classes: N; None: 150, with as many images as published, if the files are named as published.
        fast: sizes only, without decoding; labels are not looked at.

    Raises:
        DataError: no such folder.
    """
    root = Path(root)
    check_root(root, "ROOT")
    report = Report("ade20k", str(root))
    inner = root / "ADEChallengeData2016"
    if not (root / "images").is_dir() and inner.is_dir():
        report.add("folder missing", root / "images", f"did you mean {inner}?")
        return report
    stems, labels = {}, {}
    for split in splits:
        images, annotations = _list_pairs(report, root, split)
        stems[split] = sorted(images.keys() & annotations.keys())
        look = partial(_look_at_pair, decode=not fast)
        pairs = [(images[stem], annotations[stem]) for stem in stems[split]]
        results = survey(look, pairs, workers, progress, f"{split} images and labels")
        labels[split] = dict(_check_pair(report, *paths, pair) for paths, pair in results)
        report.counts |= {f"{split} images": len(images), f"{split} annotations": len(annotations)}

    every = [stem for split in splits for stem in stems[split]]
    is_ade20k = bool(every) and sum(bool(PUBLISHED_NAME.fullmatch(stem)) for stem in every) > len(every) / 2
    if classes is None and is_ade20k:
        for split in splits:
            number = report.counts[f"{split} images"]
            report.expect("number of images", root / "images" / FOLDERS[split], number, PUBLISHED_IMAGES[split], HINT)
    if fast:
        report.notes.append("labels were not looked at")
    else:
        _check_labels(report, root, labels, classes, is_ade20k)
    return report


def _list_pairs(report: Report, root: Path, split: str) -> tuple[dict[str, str], dict[str, str]]:
    """Images and annotations by the stems of their names."""
    listed = []
    for what, ending in (("images", ".jpg"), ("annotations", ".png")):
        folder = root / what / FOLDERS[split]
        if not folder.is_dir():
            report.add("folder missing", folder)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        listed.append({path.stem: str(path) for path in files if path.suffix == ending})
        if others := [path.name for path in files if path.suffix != ending and path.is_file()]:
            report.notes.append(f"{split}: {len(others)} files in {what} are no {ending} and not used: {others[0]}")
    images, annotations = listed
    for stem in sorted(images.keys() - annotations.keys()):
        report.add("image without annotation", images[stem])
    for stem in sorted(annotations.keys() - images.keys()):
        report.add("annotation without image", annotations[stem])
    return images, annotations


def _look_at_pair(paths: tuple[str, str], decode: bool) -> Pair:
    image, annotation = (look_at(path, decode) for path in paths)
    if not decode or annotation.error or annotation.mode not in ("L", "P"):
        return Pair(image, annotation)
    with Image.open(paths[1]) as labels:
        present = np.flatnonzero(np.bincount(np.asarray(labels).ravel(), minlength=256))
    return Pair(image, annotation, tuple(present.tolist()))


def _check_pair(report: Report, image: str, annotation: str, pair: Pair) -> tuple[str, tuple[int, ...]]:
    """The annotation and its labels."""
    if pair.image.error:
        report.add("image unreadable", image, pair.image.error)
    if pair.annotation.error:
        report.add("annotation unreadable", annotation, pair.annotation.error)
    elif pair.annotation.mode not in ("L", "P"):
        detail = f"mode {pair.annotation.mode}; expected are labels of 8 bits (L or P)"
        report.add("annotation is no label map", annotation, detail)
    if pair.image.size and pair.annotation.size and pair.image.size != pair.annotation.size:
        sizes = ["{}×{}".format(*look.size) for look in (pair.annotation, pair.image)]
        report.add("annotation of another size", annotation, f"{sizes[0]}, the image {sizes[1]}")
    return annotation, pair.labels


def _check_labels(
    report: Report, root: Path, labels: dict[str, dict[str, tuple[int, ...]]], classes: int | None, is_ade20k: bool
) -> None:
    """Range, zero label and number of classes; ``labels`` are those of each annotation of each split."""
    highest = classes or PUBLISHED_CLASSES
    present = {split: set().union(*files.values()) for split, files in labels.items()}
    every = set().union(*present.values())
    for split, values in present.items():
        report.counts[f"{split} classes"] = len(values & set(range(1, highest + 1)))
    reduced = bool(every) and highest not in every and (IGNORED in every or every >= set(range(highest)))
    if reduced:
        report.add(
            "labels are probably reduced already",
            root / "annotations",
            f"values {_ranges(every)}, none is {highest}: reduce_zero_label would ignore the first class and shift the "
            "others by one; if they are not reduced, --classes is wrong",
        )
    allowed = {*range(highest + 1), *({IGNORED} if reduced else ())}
    for files in labels.values():
        for name, values in files.items():
            if outside := sorted(set(values) - allowed):
                report.add("label out of range", name, f"{_ranges(outside)}; allowed are 0-{highest}")
    if classes is None and not is_ade20k:
        report.notes.append(
            f"another data set than ADE20K: labels {_ranges(every)}; --classes N checks their range and number"
        )
    elif "train" in present and not reduced and (missing := set(range(1, highest + 1)) - present["train"]):
        detail = f"{_ranges(missing)} of 1-{highest}{'' if classes else HINT}"
        report.add("class never seen in training", root / "annotations" / FOLDERS["train"], detail)


def _ranges(values: Iterable[int]) -> str:
    """ "0-149, 255" of the numbers."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs) or "none"
