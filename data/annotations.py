"""An annotation file in COCO's form, looked at once by one list of rules: the check of a data set reports what they
find, and training and evaluation open a file by them."""

from __future__ import annotations

import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elsa.core import DataError, did_you_mean, logger

from . import coco_masks
from .annotation_rules import (
    DUPLICATE_NAME,
    FLAW,
    MENDED,
    ONE_HAS_ANNOTATIONS,
    REFUSED,
    Fault,
    fault_of_box,
    is_id,
    is_name,
    is_number,
    is_side,
    listed,
    overlaps,
    short,
    some,
)

LISTS = ("images", "annotations", "categories")


class Annotations:
    """An annotation file whose entries were looked at one by one.

    Attributes:
        images, annotations, categories: the entries that can be used, mended; further keys of them are kept.
        faults: all that is wrong, in the order of the file.

    Args:
        masks: whether masks are needed; where not, whatever stands for them is ignored.
        progress: passes annotations on and may show how far they are.
    """

    def __init__(
        self,
        file: str | Path,
        masks: bool = True,
        progress: Callable[[list[Any]], Iterable[Any]] = lambda entries: entries,
    ) -> None:
        self.file, self.masks = Path(file), masks
        self.faults: list[Fault] = []
        self.content: dict[str, Any] = {}
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories: list[dict[str, Any]] = []
        try:
            self.content = read(self.file)
        except Unusable as error:
            self.faults.append(error.fault)
            return
        self.images = self._well_formed(
            "images", {"id": is_id, "file_name": is_name, "width": is_side, "height": is_side}
        )
        self.categories = self._well_formed("categories", {"id": is_id, "name": lambda name: isinstance(name, str)})
        self._check_images()
        self._check_annotations(progress)
        self._check_names()

    def refuse(self, names: Iterable[str]) -> None:
        """
        Args:
            names: of the categories that are used; others may be there twice.

        Raises:
            DataError: the file cannot be used; the first fault that is the reason.
        """
        used = {repr(name) for name in names}
        if refused := [fault for fault in self._refused() if fault.kind != DUPLICATE_NAME or fault.place in used]:
            alike = sum(fault.kind == refused[0].kind for fault in refused) - 1
            raise DataError(refused[0].line(self.file, alike))

    def _refused(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.effect == REFUSED]

    def tell(self) -> None:
        """Says once of each kind what was mended or is lost, and how often."""
        counts = Counter(fault.kind for fault in self.faults if fault.effect != REFUSED)
        for kind, count in counts.items():
            first = next(fault for fault in self.faults if fault.kind == kind)
            logger.warning("%s", first.line(self.file, count - 1))

    # ---- entries ---------------------------------------------------------------------------------------------------

    def _well_formed(self, name: str, needed: Mapping[str, Callable[[Any], bool]]) -> list[dict[str, Any]]:
        """The entries that have all that is needed, without those whose id occurred before."""
        good, seen = [], set()
        for number, entry in enumerate(self.content[name]):
            place = f"{name} number {number}"
            if not isinstance(entry, dict):
                self._add(f"{name}: entry is no object", place, short.repr(entry))
            elif wrong := [key for key, is_right in needed.items() if not is_right(entry.get(key))]:
                self._add(f"{name}: entry incomplete", place, listed(entry, wrong), key=wrong[0])
            elif entry["id"] in seen:
                self._add(f"{name}: duplicate id", place, f"{entry['id']!r}", key="id")
            else:
                seen.add(entry["id"])
                good.append(entry)
        return good

    def _check_images(self) -> None:
        for name, count in Counter(entry["file_name"] for entry in self.images).items():
            if count > 1:
                self._add("images: duplicate file", f"file_name {name!r}", f"listed {count} times", FLAW)
        for entry in self.images:
            entry["width"], entry["height"] = int(entry["width"]), int(entry["height"])
        odd = [entry["id"] for entry in self.images if not (type(entry["id"]) is int and abs(entry["id"]) < 2**63)]
        if odd:
            self._add("images: ids that are no whole numbers", "images", short.repr(odd[0]), MENDED, "id")

    def _check_annotations(self, progress: Callable[[list[Any]], Iterable[Any]]) -> None:
        sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in self.images}
        known = {entry["id"] for entry in self.categories}
        seen: set[Any] = set()
        for number, entry in enumerate(progress(self.content["annotations"])):
            if not isinstance(entry, dict):
                self._add("annotations: entry is no object", f"annotations number {number}", short.repr(entry))
                continue
            place = f"annotation {entry['id']}" if is_id(entry.get("id")) else f"annotations number {number}"
            needed = {"image_id": is_id, "category_id": is_id, "bbox": lambda value: isinstance(value, list)}
            wrong = [key for key, is_right in needed.items() if not is_right(entry.get(key))]
            if not (entry.get("area") is None or is_number(entry["area"])):
                wrong.append("area")
            if wrong:
                self._add("annotations: entry incomplete", place, listed(entry, wrong), key=wrong[0])
                continue
            place += f", image {entry['image_id']}"
            self._check_id(entry, place, seen)
            if entry["category_id"] not in known:
                detail = f"category {entry['category_id']!r}"
                self._add("annotation of an unknown category", place, detail, key="category_id")
            elif entry["image_id"] not in sizes:
                self._add("annotation of an unknown image", place, key="image_id")
            elif self._check_object(entry, place, sizes[entry["image_id"]]):
                self.annotations.append(entry)
        if all(entry["iscrowd"] for entry in self.annotations) and not self._refused():
            count = len(self.content["annotations"])
            self._add("no annotation", "annotations", f"none of {count} is of a single object" if count else "")

    def _check_id(self, entry: dict[str, Any], place: str, seen: set[Any]) -> None:
        number = entry.get("id")
        number = number if isinstance(number, (int, str, float)) else None
        if number is None:
            self._add("annotations: id missing", place, effect=MENDED, key="id")
        elif number in seen:
            self._add("annotations: duplicate id", place, effect=FLAW, key="id")
        elif number == 0:
            self._add("annotations: ids from 0", place, "pycocotools counts it as none", MENDED, "id")
        seen.add(number)

    def _check_object(self, entry: dict[str, Any], place: str, size: tuple[int, int]) -> bool:
        """Looks at box, area, crowd and mask; whether the object is one."""
        if (crowd := entry.get("iscrowd")) is None:
            self._add("iscrowd missing", place, effect=MENDED, key="iscrowd")
        elif not (isinstance(crowd, (int, float)) and crowd in (0, 1)):
            self._add("iscrowd is neither 0 nor 1", place, short.repr(crowd), key="iscrowd")
            return False
        entry["iscrowd"] = int(crowd or 0)
        if fault := fault_of_box(entry["bbox"], size):
            self._add(fault[0], place, fault[1], fault[2], "bbox")
            if fault[2] == REFUSED or not overlaps(entry["bbox"], size):
                return False
        self._check_area(entry, place, size)
        if not self.masks:
            entry.pop("segmentation", None)
        elif mask_fault := coco_masks.fault_of_mask(entry.get("segmentation"), size):
            kind, detail = mask_fault
            usable = kind in coco_masks.USABLE
            self._add(kind, place, detail, FLAW if usable else REFUSED, "segmentation")
            if usable and isinstance(entry["segmentation"], list):
                entry["segmentation"] = coco_masks.sound_polygons(entry["segmentation"])
            return usable
        return True

    def _check_area(self, entry: dict[str, Any], place: str, size: tuple[int, int]) -> None:
        if entry.get("area") is None:
            self._add("area missing", place, effect=MENDED, key="area")
        elif entry["area"] <= 0:
            self._add("area is not positive", place, f"{entry['area']}", FLAW, "area")
        elif entry["area"] > size[0] * size[1]:
            self._add("area larger than its image", place, f"{entry['area']:g} in {size[0]}×{size[1]}", FLAW, "area")
        else:
            return
        segmentation, (_, _, width, height) = entry.get("segmentation"), entry["bbox"]
        sound = segmentation is not None and coco_masks.fault_of_mask(segmentation, size) is None
        entry["area"] = coco_masks.area_of_mask(segmentation) if sound else width * height

    def _check_names(self) -> None:
        """Of several categories of one name, that is used which alone has annotations."""
        used = Counter(entry["category_id"] for entry in self.annotations)
        by_name = defaultdict(list)
        for entry in self.categories:
            by_name[entry["name"]].append(entry["id"])
        for name, ids in by_name.items():
            if len(ids) > 1:
                counts = ", ".join(f"id {number!r} with {used[number]} annotations" for number in ids)
                ambiguous = sum(used[number] > 0 for number in ids) > 1
                kind, effect = (DUPLICATE_NAME, REFUSED) if ambiguous else (ONE_HAS_ANNOTATIONS, MENDED)
                self._add(kind, repr(name), counts, effect, "name")

    def _add(self, kind: str, place: str, detail: str = "", effect: str = REFUSED, key: str = "") -> None:
        self.faults.append(Fault(kind, place, detail, key, effect))

    # ---- classes ---------------------------------------------------------------------------------------------------

    def category_ids(self, classes: Sequence[str], names: Mapping[str, str] | None = None) -> list[Any]:
        """The file's id of each class, found by its name.

        Args:
            names: class → its name in this file, where that is another one.

        Raises:
            DataError: the file has no such category.
        """
        used = Counter(entry["category_id"] for entry in self.annotations)
        ids: dict[str, Any] = {}
        for entry in sorted(self.categories, key=lambda entry: used[entry["id"]]):
            number = entry["id"]  # of two of a name, the one with annotations comes last
            ids[entry["name"]] = number if isinstance(number, str) else int(number)
        wanted = [(names or {}).get(name, name) for name in classes]
        if absent := [name for name in wanted if name not in ids]:
            there = [entry["name"] for entry in self.categories]
            near = difflib.get_close_matches(absent[0], there, 1) or ["ITS NAME"]
            stated = {classes[wanted.index(absent[0])]: near[0]}
            raise DataError(
                f"annotation file {self.file} lacks {len(absent)} of {len(wanted)} classes, {some(absent)}"
                f"{did_you_mean(absent[0], there)}; it has {some(there)}, metainfo.classes {some(list(classes))}; "
                f"metainfo.category_names = {stated} says that a class has another name in the file"
            )
        return [ids[name] for name in wanted]

    def as_coco(self, classes: Sequence[str], names: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The content for pycocotools and mmdet: categories 1 … n are the classes, in their order and under their
        names, and annotations are numbered from 1 on; those of other categories are left out.

        mmdet labels objects by the order of categories, and names COCOeval's numbers, which are sorted by id, by it.
        """
        label = {number: place for place, number in enumerate(self.category_ids(classes, names), 1)}
        whole = all(type(entry["id"]) is int and abs(entry["id"]) < 2**63 for entry in self.images)
        images = {entry["id"]: entry["id"] if whole else place for place, entry in enumerate(self.images, 1)}
        kept = (entry for entry in self.annotations if entry["category_id"] in label)
        return {
            "images": [{**entry, "id": images[entry["id"]]} for entry in self.images],
            "annotations": [
                {
                    **entry,
                    "id": place,
                    "image_id": images[entry["image_id"]],
                    "category_id": label[entry["category_id"]],
                }
                for place, entry in enumerate(kept, 1)
            ],
            "categories": [{"id": place, "name": name} for place, name in enumerate(classes, 1)],
        }


class Unusable(Exception):
    """An annotation file of which nothing can be read."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.fault = Fault(kind, "", detail)


def read(file: Path) -> dict[str, Any]:
    """The content of an annotation file, whatever the locale and with or without a byte-order mark.

    Raises:
        Unusable: it is missing, truncated, not JSON, or has not the three lists.
    """
    if not file.is_file():
        beside = sorted(other.name for other in file.parent.glob("*.json"))
        near = difflib.get_close_matches(file.name, beside, 1, 0.5) or beside[:3]
        raise Unusable("annotation file missing", f"there is {', '.join(near)}" if near else "")
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        truncated = not error.doc[error.pos :].strip()
        raise Unusable(
            "annotation file truncated" if truncated else "annotation file is not JSON",
            f"{error.msg} at line {error.lineno} column {error.colno} (character {error.pos} of {len(error.doc)})",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable("annotation file unreadable", str(getattr(error, "strerror", None) or error)) from error
    if missing := [name for name in LISTS if not isinstance(content, dict) or not isinstance(content.get(name), list)]:
        raise Unusable("annotation file without its lists", f"no list {', '.join(missing)}")
    return content
