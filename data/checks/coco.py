"""COCO's instances, or another data set in its layout: files, boxes, categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from elsa.core import DataError

from ..annotation_rules import ADVICE, MENDED, WITHOUT_AREA, Fault
from ..annotations import LISTS, Annotations
from ..images.folders import check_root
from ..survey import Progress, silent
from .coco_names import CATEGORIES
from .report import SPLITS, Report, look_at_images

PUBLISHED = {"train": {"images": 118_287, "annotations": 860_001}, "val": {"images": 5_000, "annotations": 36_781}}
# Published as they are, one box of height 0 each (github.com/cocodataset/cocoapi/issues/355); loaders leave them out.
FLAWED_IMAGES = {200_365, 550_395}
HINT = "; --classes N for another data set"


@dataclass(frozen=True)
class CocoPlace:
    """Where a split of annotated images lies.

    Attributes:
        file: with the annotations; images: the folder that its names begin at.
        classes: that are to be found in it; none: any. names: class → its name in the file, as in a recipe.
    """

    file: Path
    images: Path
    classes: tuple[str, ...] = ()
    names: Mapping[str, str] | None = None


def check_coco(
    root: str | Path,
    classes: int | None = None,
    splits: tuple[str, ...] = SPLITS,
    fast: bool = False,
    workers: int = 0,
    progress: Progress = silent,
    masks: bool = True,
    places: Mapping[str, CocoPlace] | None = None,
) -> Report:
    """Checks ``root/{train,val}2017/*`` against ``root/annotations/instances_{train,val}2017.json``.

    Args:
        classes: how many there are; None: COCO's 80 under their published ids, with as many images and annotations as
            published, if the file is COCO by its description or its category names.
        fast: sizes of images only, without decoding.
        masks: whether every object needs one.
        places: split → where it lies, where that is elsewhere.

    Raises:
        DataError: no such folder.
    """
    root = Path(root)
    check_root(root, "ROOT")
    report = Report("coco", str(root))
    categories: dict[str, dict[Any, str]] = {}
    for split in splits:
        usual = CocoPlace(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017")
        place = places[split] if places else usual
        file, told = place.file, partial(progress, description=f"{split} annotations")
        found = Annotations(file, masks, lambda entries, told=told: told(entries, len(entries)))  # type: ignore[misc]
        if not found.content:
            report.add(found.faults[0].kind, file, found.faults[0].detail)
            continue
        for name in LISTS:
            report.counts[f"{split} {name}"] = len(found.content[name])
        categories[split] = {entry["id"]: entry["name"] for entry in found.categories}
        description = _description(found.content)
        is_coco = classes is None and not place.classes and _is_coco(description, categories[split])
        wanted = classes or (len(CATEGORIES) if is_coco else None)
        if place.classes:
            _check_classes(report, found, place)
        elif wanted is not None:
            report.expect("number of categories", file, len(categories[split]), wanted)
        if is_coco:
            _compare_with_published(report, file, split, found, categories[split])
        elif classes is None and not place.classes:
            report.notes.append(f"{split}: {_name_of_other(description, categories[split])}")
        _report_faults(report, split, found, FLAWED_IMAGES if is_coco else set())
        _check_images(report, place.images, split, found.images, fast, workers, progress)
    if len(categories) == 2 and not places:
        _compare_categories(report, root / "annotations", categories["train"], categories["val"])
    return report


def _check_classes(report: Report, found: Annotations, place: CocoPlace) -> None:
    try:
        found.category_ids(place.classes, place.names)
    except DataError as error:
        report.add("class that the file has not", place.file, str(error))


def _report_faults(report: Report, split: str, found: Annotations, flawed_images: set[int]) -> None:
    """Findings, and notes on what is mended whenever the file is opened."""
    mended = Counter(fault.kind for fault in found.faults if fault.effect == MENDED)
    report.notes += [f"{split}: {kind}, {count} times: {ADVICE[kind]}" for kind, count in mended.items()]
    flawed = tuple(f", image {number}" for number in flawed_images)
    for fault in found.faults:
        if fault.kind == WITHOUT_AREA and fault.place.endswith(flawed):
            report.notes.append(f"{split}: {fault.place} has no area in the published file either")
        elif fault.effect != MENDED:
            report.add(fault.kind, _place(found.file, fault), fault.detail)
    with_any = {entry["image_id"] for entry in found.annotations}
    report.counts[f"{split} images without annotation"] = len({entry["id"] for entry in found.images} - with_any)


def _place(file: Path, fault: Fault) -> str:
    return f"{file}: {fault.place}" if fault.place else str(file)


# ---- categories ----------------------------------------------------------------------------------------------------


def _description(content: dict[str, Any]) -> str:
    info = content.get("info")
    return str(info.get("description", "")) if isinstance(info, dict) else ""


def _is_coco(description: str, categories: dict[Any, str]) -> bool:
    return description.startswith("COCO 20") or len(set(categories.values()) & set(CATEGORIES.values())) >= 40


def _name_of_other(description: str, categories: dict[Any, str]) -> str:
    listed = ", ".join([*list(categories.values())[:12], *(["…"] if len(categories) > 12 else [])])
    named = f" ({description})" if description else ""
    return f"another data set than COCO{named} with {len(categories)} categories: {listed}"


def _compare_categories(report: Report, folder: Path, train: dict[Any, str], val: dict[Any, str]) -> None:
    """Names must be the same; ids may differ, for classes are found by their names."""
    if odd := set(train.values()) ^ set(val.values()):
        numbered = {f"{number} {name}" for number, name in (*train.items(), *val.items()) if name in odd}
        report.add("categories of the splits differ", folder, ", ".join(sorted(numbered)[:5]))
    elif train != val:
        report.notes.append("the splits have other ids for the same categories: they are found by their names")


def _compare_with_published(report: Report, file: Path, split: str, found: Annotations, names: dict[Any, str]) -> None:
    for number, name in sorted(names.items() - CATEGORIES.items(), key=str):
        published = repr(CATEGORIES[number]) if number in CATEGORIES else "none of that id"
        report.add("category mapping", f"{file}: category {number}", f"{name!r}; COCO has {published}")
    for name, expected in PUBLISHED[split].items():
        report.expect(f"number of {name}", file, len(found.content[name]), expected, HINT)


# ---- images --------------------------------------------------------------------------------------------------------


def _check_images(
    report: Report, folder: Path, split: str, images: list[dict[str, Any]], fast: bool, workers: int, progress: Progress
) -> None:
    if not folder.is_dir():
        report.add("image folder missing", folder)
        return
    listed = {str(folder / entry["file_name"]): (entry["width"], entry["height"]) for entry in images}
    there = []
    for path in listed:
        if Path(path).is_file():
            there.append(path)
        else:
            report.add("image missing", path)
    if unlisted := sum(entry.is_file() for entry in folder.iterdir()) - len(there):
        report.notes.append(f"{split}: {unlisted} files in {folder.name} are not in the annotation file")
    for path, look in look_at_images(report, split, there, not fast, workers, progress):
        if look.header and look.size != listed[path]:
            detail = "{}×{}, in the annotation file {}×{}".format(*look.header.size, *listed[path])
            if look.header.stored == listed[path]:
                detail += "; with image_orientation = 'stored' the camera's note (EXIF) is ignored, as there"
            report.add("image of another size", path, detail)
