"""COCO's instances, or another data set in its layout: files, boxes, categories."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from ..images.sources import check_root
from .coco_masks import fault_of_mask
from .coco_names import CATEGORIES
from .report import SPLITS, Progress, Report, look_at, silent, survey

PUBLISHED = {"train": {"images": 118_287, "annotations": 860_001}, "val": {"images": 5_000, "annotations": 36_781}}
# Published as they are, one box of height 0 each (github.com/cocodataset/cocoapi/issues/355); loaders leave them out.
FLAWED_IMAGES = {200_365, 550_395}
TOLERANCE = 1.0  # pixels by which a box may leave its image: published coordinates are rounded
NEEDED = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list, "area": (int, float)},
    "categories": {"id": int, "name": str},
}
WITHOUT_AREA = "box without area"
HINT = "; --classes N for another data set"
Entries = dict[str, list[dict[str, Any]]]


def check_coco(
    root: str | Path,
    classes: int | None = None,
    splits: tuple[str, ...] = SPLITS,
    fast: bool = False,
    workers: int = 0,
    progress: Progress = silent,
) -> Report:
    """Checks ``root/{train,val}2017/*`` against ``root/annotations/instances_{train,val}2017.json``.

    Args:
        classes: how many there are; None: COCO's 80 under their published ids, with as many images and annotations as
            published, if the file is COCO by its description or its category names.
        fast: sizes of images only, without decoding.

    Raises:
        DataError: no such folder.
    """
    root = Path(root)
    check_root(root, "ROOT")
    report = Report("coco", str(root))
    categories: dict[str, dict[int, str]] = {}
    for split in splits:
        file = root / "annotations" / f"instances_{split}2017.json"
        if (content := _read(report, file)) is None:
            continue
        entries = {name: _well_formed(report, file, name, content[name]) for name in NEEDED}
        for name, listed in entries.items():
            report.counts[f"{split} {name}"] = len(listed)
        categories[split] = {entry["id"]: entry["name"] for entry in entries["categories"]}
        description = _description(content)
        is_coco = classes is None and _is_coco(description, categories[split])
        _check_categories(report, file, categories[split], classes or (len(CATEGORIES) if is_coco else None))
        if is_coco:
            _compare_with_published(report, file, split, entries, categories[split])
        elif classes is None:
            report.notes.append(f"{split}: {_name_of_other(description, categories[split])}")
        _check_annotations(report, file, split, entries, FLAWED_IMAGES if is_coco else set(), progress)
        _check_images(report, root / f"{split}2017", split, entries, fast, workers, progress)
    if len(categories) == 2 and categories["train"] != categories["val"]:
        odd = sorted({f"{number} {name}" for number, name in categories["train"].items() ^ categories["val"].items()})
        report.add("categories of the splits differ", root / "annotations", ", ".join(odd[:5]))
    return report


def _read(report: Report, file: Path) -> dict[str, Any] | None:
    """The content of an annotation file, where it has the form of one."""
    if not file.is_file():
        report.add("annotation file missing", file)
        return None
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        truncated = not error.doc[error.pos :].strip()
        kind = "annotation file truncated" if truncated else "annotation file is not JSON"
        detail = f"{error.msg} at line {error.lineno} column {error.colno} (character {error.pos} of {len(error.doc)})"
        report.add(kind, file, detail)
        return None
    except (OSError, UnicodeDecodeError) as error:
        report.add("annotation file unreadable", file, str(error))
        return None
    if missing := [name for name in NEEDED if not isinstance(content, dict) or not isinstance(content.get(name), list)]:
        report.add("annotation file without its lists", file, f"no list {', '.join(missing)}")
        return None
    return content


def _well_formed(report: Report, file: Path, name: str, entries: list[Any]) -> list[dict[str, Any]]:
    """The entries with all that is needed; the others, and those whose id occurred before, are reported."""
    good, seen = [], set()
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            report.add(f"{name}: entry is no object", f"{file}: number {number}")
            continue
        wrong = [
            key
            for key, kind in NEEDED[name].items()
            if not isinstance(entry.get(key), kind) or isinstance(entry[key], bool)
        ]
        if wrong:
            detail = ", ".join(f"{key} {entry.get(key, 'missing')!r}" for key in wrong)
            report.add(f"{name}: entry incomplete", f"{file}: number {number}", detail)
            continue
        if entry["id"] in seen:
            report.add(f"{name}: duplicate id", f"{file}: {entry['id']}")
            continue
        seen.add(entry["id"])
        good.append(entry)
    return good


# ---- categories ----------------------------------------------------------------------------------------------------


def _description(content: dict[str, Any]) -> str:
    info = content.get("info")
    return str(info.get("description", "")) if isinstance(info, dict) else ""


def _is_coco(description: str, categories: dict[int, str]) -> bool:
    return description.startswith("COCO 20") or len(set(categories.values()) & set(CATEGORIES.values())) >= 40


def _name_of_other(description: str, categories: dict[int, str]) -> str:
    listed = ", ".join([*list(categories.values())[:12], *(["…"] if len(categories) > 12 else [])])
    named = f" ({description})" if description else ""
    return f"another data set than COCO{named} with {len(categories)} categories: {listed}"


def _check_categories(report: Report, file: Path, found: dict[int, str], expected: int | None) -> None:
    for name, count in Counter(found.values()).items():
        if count > 1:
            report.add("categories: duplicate name", file, name)
    if expected is not None:
        report.expect("number of categories", file, len(found), expected)


def _compare_with_published(report: Report, file: Path, split: str, entries: Entries, found: dict[int, str]) -> None:
    for number, name in sorted(found.items() - CATEGORIES.items()):
        published = repr(CATEGORIES[number]) if number in CATEGORIES else "none of that id"
        report.add("category mapping", f"{file}: category {number}", f"{name!r}; COCO has {published}")
    for name, expected in PUBLISHED[split].items():
        report.expect(f"number of {name}", file, len(entries[name]), expected, HINT)


# ---- annotations ---------------------------------------------------------------------------------------------------


def _check_annotations(
    report: Report, file: Path, split: str, entries: Entries, flawed_images: set[int], progress: Progress
) -> None:
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in entries["images"]}
    categories = {entry["id"] for entry in entries["categories"]}
    annotations = entries["annotations"]
    for entry in progress(annotations, len(annotations), f"{split} annotations"):
        place = f"{file}: annotation {entry['id']}, image {entry['image_id']}"
        if entry["category_id"] not in categories:
            report.add("annotation of an unknown category", place, f"category {entry['category_id']}")
        if entry.get("iscrowd") not in (0, 1):
            report.add("iscrowd is neither 0 nor 1", place, f"{entry.get('iscrowd', 'missing')!r}")
        if entry["image_id"] not in sizes:
            report.add("annotation of an unknown image", place)
            continue
        size = sizes[entry["image_id"]]
        fault = _fault_of_box(entry, size)
        if fault and fault[0] == WITHOUT_AREA and entry["image_id"] in flawed_images:
            report.notes.append(f"{split}: annotation {entry['id']} has no area in the published file either")
            continue
        for kind, detail in filter(None, (fault, fault_of_mask(entry.get("segmentation"), size))):
            report.add(kind, place, detail)
    with_any = {entry["image_id"] for entry in annotations}
    report.counts[f"{split} images without annotation"] = len(sizes.keys() - with_any)


def _fault_of_box(entry: dict[str, Any], size: tuple[int, int]) -> tuple[str, str] | None:
    """(kind, detail) of what is wrong with ``bbox`` [x, y, width, height] or ``area``."""
    box = entry["bbox"]
    numbers = [value for value in box if isinstance(value, int | float) and math.isfinite(value)]
    if len(box) != 4 or len(numbers) != 4:
        return "box is not four numbers", f"{box}"
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return WITHOUT_AREA, f"{box}"
    if min(left, top) < -TOLERANCE or left + width > size[0] + TOLERANCE or top + height > size[1] + TOLERANCE:
        return "box outside its image", f"{box} in {size[0]}×{size[1]}"
    if not (entry["area"] > 0 and math.isfinite(entry["area"])):
        return "area is not positive", f"{entry['area']}"
    return None


# ---- images --------------------------------------------------------------------------------------------------------


def _check_images(
    report: Report, folder: Path, split: str, entries: Entries, fast: bool, workers: int, progress: Progress
) -> None:
    if not folder.is_dir():
        report.add("image folder missing", folder)
        return
    names = Counter(entry["file_name"] for entry in entries["images"])
    for name, count in names.items():
        if count > 1:
            report.add("images: duplicate file", folder / name, f"listed {count} times")
    listed = {str(folder / entry["file_name"]): (entry["width"], entry["height"]) for entry in entries["images"]}
    there = []
    for path in listed:
        if Path(path).is_file():
            there.append(path)
        else:
            report.add("image missing", path)
    if unlisted := sum(entry.is_file() for entry in folder.iterdir()) - len(there):
        report.notes.append(f"{split}: {unlisted} files in {folder.name} are not in the annotation file")
    look = partial(look_at, decode=not fast)
    for path, seen in survey(look, there, workers, progress, f"{split} images"):
        if seen.error:
            report.add("image unreadable", path, seen.error)
        elif seen.size != listed[path]:
            detail = "{}×{}, in the annotation file {}×{}".format(*seen.size, *listed[path])
            report.add("image of another size", path, detail)
