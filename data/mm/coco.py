"""COCO data sets that are checked when they are opened: what mmdet would pass over in silence is an error here."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.registry import DATASETS

from elsa.core import DataError

from .loaders import check_images_exist


class CheckedCOCO(COCO):
    """pycocotools' index of an annotation file, refused where it is damaged or does not refer to itself.

    Raises:
        DataError: missing, truncated, not COCO, or annotations of images or categories that it does not list.
    """

    def __init__(self, annotation_file: str) -> None:
        path = Path(annotation_file)
        if not path.is_file():
            beside = sorted(other.name for other in path.parent.glob("*.json"))
            near = difflib.get_close_matches(path.name, beside, 1, 0.5) or beside[:3]
            raise DataError(
                f"annotation file {path} does not exist" + (f"; there is {', '.join(near)}" if near else "")
            )
        try:
            super().__init__(str(path))
        except json.JSONDecodeError as error:
            raise DataError(f"annotation file {path} is truncated or no JSON: {error}") from error
        except (AssertionError, KeyError, TypeError) as error:
            raise DataError(f"annotation file {path} has not COCO's form: {error!r}") from error
        if absent := [key for key in ("images", "annotations", "categories") if key not in self.dataset]:
            raise DataError(f"annotation file {path} has no {', '.join(absent)}")
        for key, known, what in (("category_id", self.cats, "categories"), ("image_id", self.imgs, "images")):
            unknown = {entry[key] for entry in self.dataset["annotations"]} - set(known)
            if unknown:
                raise DataError(f"annotation file {path}: annotations of {what} that it does not list: "
                                f"{', '.join(map(str, sorted(unknown)[:5]))}")  # fmt: skip


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's CocoDataset, whose classes must all be in the annotation file and whose images must be there.

    Raises:
        DataError: see CheckedCOCO; classes or images that are missing; no image that can be trained on.
    """

    def COCOAPI(self, path: str) -> CheckedCOCO:  # mmdet calls it by this name
        coco = CheckedCOCO(path)
        names = [category["name"] for category in coco.dataset["categories"]]
        if absent := [name for name in self.metainfo["classes"] if name not in names]:
            near = difflib.get_close_matches(absent[0], names, 1) or names[:3]
            raise DataError(f"{path} lacks {len(absent)} of {len(self.metainfo['classes'])} classes, {absent[0]!r} for "
                            f"one; it has {', '.join(near)}")  # fmt: skip
        return coco

    def load_data_list(self) -> list[dict[str, Any]]:
        if self.data_root and not Path(self.data_root).is_dir():
            raise DataError(f"data_root {self.data_root} does not exist; --set data_root=DIR names another")
        return super().load_data_list()

    def full_init(self) -> None:
        if not self._fully_initialized:
            super().full_init()
            if not len(self):
                raise DataError(f"{self.ann_file}: no image has an object that can be used")
            check_images_exist(self)
