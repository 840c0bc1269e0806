"""ImageNet, or another set of images in class folders, in any form that the loaders take."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from elsa.core import DataError

from ..images.folders import FolderImages, TarImages, check_root, find_split
from ..listing import folders_in
from ..survey import Progress, silent, survey
from .report import SPLITS, Look, Oddities, Report, look_at, look_at_images

WORDNET = re.compile(r"n\d{8}")
PUBLISHED_CLASSES = 1000
PUBLISHED_IMAGES = {"train": 1_281_167, "val": 50_000}
HINT = "; --classes N for another data set"


def check_imagenet(
    root: str | Path,
    classes: int | None = None,
    splits: tuple[str, ...] = SPLITS,
    fast: bool = False,
    workers: int = 0,
    progress: Progress = silent,
    names: Mapping[str, str] | None = None,
) -> Report:
    """Checks ``root/SPLIT/CLASS/**/IMAGE`` or ``root/SPLIT.tar``.

    Args:
        names: split → what it is called, where that is otherwise.
        classes: how many there are; None: 1000, with as many images as published, if the folders have WordNet names.
        fast: sizes only, without decoding.

    Raises:
        DataError: no such folder.
    """
    root = Path(root)
    check_root(root, "ROOT")
    report = Report("imagenet", str(root))
    found: dict[str, set[str]] = {}
    numbers: dict[str, int] = {}
    for split in splits:
        path = find_split(root, (names or {}).get(split, split))
        if path is None:
            report.add("split missing", root / split, f"{root} has no folder and no .tar file of that name")
        elif path.suffix == ".tar":
            found[split], numbers[split] = _check_tar(report, split, path, fast, workers, progress)
        else:
            found[split], numbers[split] = _check_folder(report, split, path, fast, workers, progress)
    _compare_splits(report, root, found)
    names = set().union(*found.values())
    is_imagenet = len([name for name in names if WORDNET.fullmatch(name)]) > len(names) / 2
    if names and classes is None and not is_imagenet:
        report.notes.append(f"another data set than ImageNet: {len(names)} classes; --classes N checks their number")
    for split, own in found.items():
        if classes is not None or is_imagenet:
            expected = classes or PUBLISHED_CLASSES
            report.expect("number of classes", root / split, len(own), expected, "" if classes else HINT)
        if classes is None and is_imagenet:
            report.expect("number of images", root / split, numbers[split], PUBLISHED_IMAGES[split], HINT)
    return report


def _compare_splits(report: Report, root: Path, found: dict[str, set[str]]) -> None:
    if len(found) == 2:
        for one, other in (SPLITS, SPLITS[::-1]):
            for name in sorted(found[one] - found[other]):
                report.add(f"class in {one} only", root / one / name)


def _check_folder(
    report: Report, split: str, path: Path, fast: bool, workers: int, progress: Progress
) -> tuple[set[str], int]:
    """Class names and number of images."""
    classes = folders_in(path)
    if not classes:
        loose = sum(entry.is_file() for entry in path.iterdir())
        detail = f"{loose} files lie in it directly; the loaders expect {path.name}/CLASS/IMAGE" if loose else "empty"
        report.add("no class folders", path, detail)
    images = FolderImages(path, classes)
    per_class = Counter(classes[index] for index in images.labels)
    for name in classes:
        if not per_class[name]:
            report.add("class without images", path / name)
    report.notes += images.notes()
    names = [images.filename(index) for index in range(len(images))]
    list(look_at_images(report, split, names, not fast, workers, progress))
    return _count(report, split, classes, len(images))


def _check_tar(
    report: Report, split: str, path: Path, fast: bool, workers: int, progress: Progress
) -> tuple[set[str], int]:
    """Class names and number of images; tar files inside the tar file are classes."""
    try:
        images = TarImages(path)
    except DataError as error:
        report.add("tar file unreadable", path, str(error))
        return _count(report, split, [], 0)
    places = list(zip(images.offsets, images.sizes, strict=True))
    look_inside = partial(_look_into_tar, str(path), not fast)
    looks = survey(look_inside, places, workers, progress, f"{split} images")
    oddities = Oddities()
    for name, (_, look) in zip(images.names, looks, strict=True):
        oddities.see(look)
        if look.error:
            report.add("image unreadable", f"{path}/{name}", look.error)
    report.notes += oddities.notes(split)
    return _count(report, split, images.classes, len(images))


def _look_into_tar(path: str, decode: bool, place: tuple[int, int]) -> Look:
    offset, size = place
    with open(path, "rb") as file:
        file.seek(offset)
        return look_at(io.BytesIO(file.read(size)), decode)


def _count(report: Report, split: str, classes: list[str], images: int) -> tuple[set[str], int]:
    report.counts |= {f"{split} classes": len(classes), f"{split} images": images}
    return set(classes), images
