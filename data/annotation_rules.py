"""What is wrong with an entry of an annotation file in COCO's form, and what is done about it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any

from . import coco_masks

LARGEST_SIDE = 1_000_000  # pixels
TOLERANCE = 1.0  # pixels by which a box may leave its image: published coordinates are rounded

# What is done about a fault: the file is refused; it is used, and the check of a data set reports what it loses by it;
# it is mended without a guess, and that is said.
REFUSED, FLAW, MENDED = "refused", "flaw", "mended"
DUPLICATE_NAME, ONE_HAS_ANNOTATIONS = "categories: duplicate name", "categories: duplicate name without annotations"
WITHOUT_AREA = "box without area"
NEEDS_MASK = (
    "give every object a mask, or train boxes alone: with_mask=False in the pipeline's LoadAnnotations, "
    "a model without mask_head, metric='bbox' in the evaluators"
)
PIXELS = "coordinates are pixels from the image's upper left corner"
UNIQUE, ANEW, LEFT_OUT = "ids must be unique", "they are numbered anew", "they are left out"
# Kind → what to do about it, or what is done.
ADVICE = {
    "images: entry incomplete": f"an image has id, file_name, and width and height of 1 … {LARGEST_SIDE} pixels",
    "images: duplicate id": UNIQUE,
    "images: duplicate file": "the file is used that often",
    "images: ids that are no whole numbers": ANEW,
    "categories: entry incomplete": "a category has id and name",
    "categories: duplicate id": UNIQUE,
    DUPLICATE_NAME: "remove the category that is not meant, a supercategory for one, and its annotations",
    ONE_HAS_ANNOTATIONS: "that is used which has annotations",
    "annotations: entry incomplete": "an annotation has image_id, category_id and bbox [x, y, width, height]",
    "annotations: duplicate id": ANEW,
    "annotations: id missing": ANEW,
    "annotations: ids from 0": ANEW,
    "annotation of an unknown category": "list the category, or remove the annotation",
    "annotation of an unknown image": "list the image, or remove the annotation",
    "no annotation": "without one, nothing can be learned or measured",
    "iscrowd missing": "0 is taken",
    "iscrowd is neither 0 nor 1": "1 marks a group of objects as one, 0 is usual",
    "area missing": "that of the mask is taken, or of the box where there is none",
    "area is not positive": "that of the mask is taken, or of the box where there is none",
    "area larger than its image": "that of the mask is taken, or of the box where there is none",
    "box is not four numbers": f"it is [x, y, width, height]; {PIXELS}",
    "box far outside its image": PIXELS,
    "box outside its image": "they are left out where nothing of them is in the image",
    WITHOUT_AREA: LEFT_OUT,
    coco_masks.MISSING: NEEDS_MASK,
    coco_masks.EMPTY: NEEDS_MASK,
    coco_masks.DEGENERATE: NEEDS_MASK,
    coco_masks.FAR: PIXELS,
    coco_masks.OTHER_SIZE: "it belongs to another image, or width and height are swapped",
    coco_masks.PARTLY_DEGENERATE: "that part is left out",
    coco_masks.WITHOUT_AREA: "they are used for their boxes",
}

short = Repr()
short.maxstring = short.maxother = 60


@dataclass(frozen=True)
class Fault:
    """Something wrong in an annotation file.

    Attributes:
        kind: the same words for all of its kind.
        place: which entry; empty for the file as a whole.
        key: of the entry.
        effect: REFUSED, FLAW or MENDED.
    """

    kind: str
    place: str = ""
    detail: str = ""
    key: str = ""
    effect: str = REFUSED

    def line(self, file: Path, more: int = 0) -> str:
        """For people: file, entry, key, value, and what to do."""
        place = ", ".join(filter(None, (self.place, self.key)))
        where = f"annotation file {file}: {place}: " if place else f"annotation file {file} "
        detail = f" ({self.detail})" if self.detail else ""
        rest = f", and {more} more such" if more else ""
        advice = f"; {ADVICE[self.kind]}" if self.kind in ADVICE else ""
        return f"{where}{self.kind.removeprefix('annotation file ')}{detail}{rest}{advice}"


# ---- values ----------------------------------------------------------------------------------------------------


def is_id(value: Any) -> bool:
    return isinstance(value, str) or (is_number(value) and value == int(value))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def is_side(value: Any) -> bool:
    return is_number(value) and 1 <= value <= LARGEST_SIDE and value == int(value)


def is_name(value: Any) -> bool:
    """Whether a file may have that name here."""
    try:
        return isinstance(value, str) and bool(value.strip()) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def fault_of_box(box: list[Any], size: tuple[int, int]) -> tuple[str, str, str] | None:
    """(kind, detail, effect) of what is wrong with ``bbox`` [x, y, width, height]."""
    found = coco_masks.numbers(box)
    if found is None or len(found) != 4:
        return "box is not four numbers", short.repr(box), REFUSED
    left, top, width, height = found.tolist()
    inside = f"{box} in {size[0]}×{size[1]}"
    if coco_masks.far_outside([left, top, left + width, top + height], size):
        return "box far outside its image", inside, REFUSED
    if width <= 0 or height <= 0:
        return WITHOUT_AREA, f"{box}", FLAW
    if min(left, top) < -TOLERANCE or left + width > size[0] + TOLERANCE or top + height > size[1] + TOLERANCE:
        return "box outside its image", inside, FLAW
    return None


def overlaps(box: list[Any], size: tuple[int, int]) -> bool:
    left, top, width, height = box
    return min(left + width, size[0]) > max(left, 0) and min(top + height, size[1]) > max(top, 0)


def listed(entry: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {short.repr(entry[key]) if key in entry else 'missing'}" for key in keys)


def some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join([*(repr(name) for name in names[:most]), *(["…"] if len(names) > most else [])]) or "none"
