"""ADE20K, or another set of images and label maps in its layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..decode import TURNED
from ..images.folders import check_root
from ..label_colours import read_label_map
from ..label_maps import (
    OTHER_SIZE,
    UNREADABLE,
    Labelling,
    MapLook,
    in_ranges,
    look_at_map,
    never_seen,
    other_size,
    reduced_already,
    unlabelled,
)
from ..pairs import find_pairs
from ..survey import Progress, silent, survey
from .report import SPLITS, Look, Oddities, Report, look_at

PARTS = ("images", "annotations")
FOLDERS = {"train": "training", "val": "validation"}
PUBLISHED_CLASSES = 150
PUBLISHED_IMAGES = {"train": 20_210, "val": 2_000}
PUBLISHED_NAME = re.compile(r"ADE_(train|val)_\d{8}")
HINT = "; --classes N for another data set"


@dataclass(frozen=True)
class MapPlace:
    """Where a split of images and label maps lies.

    Attributes:
        endings: of the names of images and of maps, as ``find_pairs`` takes them.
        names: of the pairs that belong to it; None: all.
    """

    images: Path
    maps: Path
    endings: tuple[str | None, str | None] = (None, None)
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Pair:
    image: Look
    label_map: MapLook


def check_ade20k(
    root: str | Path,
    classes: int | None = None,
    splits: tuple[str, ...] = SPLITS,
    fast: bool = False,
    workers: int = 0,
    progress: Progress = silent,
    reduced: bool = True,
    replaced: Mapping[Any, Any] | None = None,
    orientation: str = TURNED,
    places: Mapping[str, MapPlace] | None = None,
) -> Report:
    """Checks images below ``root/images/{training,validation}`` and label maps below
    ``root/annotations/{training,validation}`` by the rules of training.

    Args:
        classes: N; None: 150, with as many images as published, if the files are named as published.
        fast: sizes only, without decoding; labels are not looked at.
        reduced: 0 is unlabelled and 1 … N are the classes, as published; else they are 0 … N − 1.
        replaced: numbers or colours in the files and what they stand for, as ``label_map`` in a recipe.
        orientation: that of the images which the maps belong to.
        places: split → where it lies, where that is elsewhere.

    Raises:
        DataError: no such folder.
        ConfigError: more classes than a map can have, or replacements that make no labels.
    """
    root = Path(root)
    check_root(root, "ROOT")
    numbers_of, colours = read_label_map(replaced)
    labelling = Labelling(classes or PUBLISHED_CLASSES, reduced, numbers_of, colours=colours)
    report = Report("ade20k", str(root))
    inner = root / "ADEChallengeData2016"
    if places is None and not (root / "images").is_dir() and inner.is_dir():
        report.add("folder missing", root / "images", f"did you mean {inner}?")
        return report
    where = places or {split: MapPlace(*(root / what / FOLDERS[split] for what in PARTS)) for split in splits}
    names, numbers = {}, {}
    for split in splits:
        pairs = _list_pairs(report, where[split], split)
        names[split] = list(pairs)
        look = partial(_look_at_pair, decode=not fast, labelling=labelling, orientation=orientation)
        looks = survey(look, list(pairs.values()), workers, progress, f"{split} images and labels")
        numbers[split] = _check_pairs(report, split, looks)

    every = [name for split in splits for name in names[split]]
    is_ade20k = bool(every) and sum(bool(PUBLISHED_NAME.fullmatch(name)) for name in every) > len(every) / 2
    if classes is None and is_ade20k:
        for split in splits:
            number = report.counts[f"{split} images"]
            report.expect("number of images", where[split].images, number, PUBLISHED_IMAGES[split], HINT)
    if fast:
        report.notes.append("labels were not looked at")
    else:
        _check_numbers(report, where, numbers, labelling, classes, is_ade20k)
    return report


def _list_pairs(report: Report, place: MapPlace, split: str) -> dict[str, tuple[str, str]]:
    """Images and maps by the names that they share, those alone that the place's list has, where there is one."""
    for folder in (place.images, place.maps):
        if not folder.is_dir():
            report.add("folder missing", folder)
    pairs = find_pairs(place.images, place.maps, *place.endings)
    both = pairs.both
    if place.names is not None:
        both = {name: pairs.both[name] for name in place.names if name in pairs.both}
        for name in place.names:
            if name not in both:
                report.add("listed pair missing", name, f"no image and label map of that name in {place.images}")
        report.counts |= {f"{split} images": len(both), f"{split} annotations": len(both)}
        return both
    for name, files in pairs.doubles:
        report.add("several files of one name", name, ", ".join(sorted(files)))
    for path in pairs.images.values():
        report.add("image without annotation", path)
    for path in pairs.maps.values():
        report.add("annotation without image", path)
    for what, unused in zip(PARTS, pairs.unused, strict=True):
        if unused:
            listed = ", ".join(f"{count} {ending}" for ending, count in unused.items())
            report.notes.append(f"{split}: files in {what} that are not used: {listed}")
    report.counts |= {f"{split} images": pairs.counts[0], f"{split} annotations": pairs.counts[1]}
    return pairs.both


def _look_at_pair(paths: tuple[str, str], decode: bool, labelling: Labelling, orientation: str) -> Pair:
    image = look_at(paths[0], decode)
    if decode:
        return Pair(image, replace(look_at_map(paths[1], labelling, image.header, orientation), values=None))
    found, faults = look_at(paths[1], decode), []
    if found.error:
        faults.append((UNREADABLE, found.error))
    elif image.header and (wrong := other_size(found.header.stored, image.header, orientation)):
        faults.append((OTHER_SIZE, wrong))
    return Pair(image, MapLook(faults=tuple(faults)))


def _check_pairs(report: Report, split: str, looks: Iterable[tuple[tuple[str, str], Pair]]) -> set[int]:
    """The numbers that occur in a split's maps."""
    numbers, oddities, grey = set[int](), Oddities(), 0
    for (image, label_map), pair in looks:
        if pair.image.error:
            report.add("image unreadable", image, pair.image.error)
        for kind, what in pair.label_map.faults:
            report.add(kind, label_map, what)
        numbers.update(pair.label_map.numbers)
        oddities.see(pair.image)
        grey += pair.label_map.grey
    report.notes += oddities.notes(split)
    if grey:
        report.notes.append(f"{split}: {grey} annotations hold labels in three equal channels, taken for one")
    return numbers


def _check_numbers(
    report: Report,
    where: Mapping[str, MapPlace],
    found: dict[str, set[int]],
    labelling: Labelling,
    classes: int | None,
    is_ade20k: bool,
) -> None:
    """Whether the numbers that occur in each split can be the labels of so many classes."""
    known = set(range(labelling.first, labelling.last + 1))
    for split, numbers in found.items():
        report.counts[f"{split} classes"] = len(known) - len(never_seen(numbers, labelling))
        if numbers and (wrong := unlabelled(numbers, labelling)):
            report.add("no labelled pixel", where[split].maps, wrong)
    every = set().union(*found.values())
    if looks_reduced := reduced_already(every, labelling):
        report.add("labels are probably reduced already", where[next(iter(found))].maps.parent, looks_reduced)
    if classes is None and not is_ade20k:
        report.notes.append(
            f"another data set than ADE20K: labels {labelling.named(every)}; --classes N checks their range and number"
        )
    elif "train" in found and not looks_reduced and (missing := never_seen(found["train"], labelling)):
        detail = f"{in_ranges(missing)} of {labelling.first}-{labelling.last}{'' if classes else HINT}"
        report.add("class never seen in training", where["train"].maps, detail)
