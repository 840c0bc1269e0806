"""COCO data sets and their metric, whose annotation file is checked when it is opened: what mmdet would pass over in
silence, or meet after hours, is an error here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmengine.registry import DATASETS, METRICS

from elsa.core import ConfigError, DataError, did_you_mean

from ..annotations import Annotations
from .loaders import check_images, find_key


class CheckedCOCO(COCO):
    """pycocotools' index of an annotation file that can be used: categories 1 … n are the classes, in their order.

    Args:
        classes, names: see ``Annotations.category_ids``.
        masks: whether each object needs a mask.
        quiet: whether what was mended was said before.

    Attributes:
        category_ids: of each class in the file.

    Raises:
        DataError: the file is refused; the message names file, entry and key.
    """

    def __init__(
        self, file: str, classes: tuple[str, ...], names: Mapping[str, str], masks: bool, quiet: bool = False
    ) -> None:
        super().__init__()
        found = Annotations(file, masks)
        found.refuse(names.get(name, name) for name in classes)
        self.category_ids = found.category_ids(classes, names)
        self.dataset = found.as_coco(classes, names)
        if all(entry["iscrowd"] for entry in self.dataset["annotations"]):
            raise DataError(f"annotation file {file} has no object of the {len(classes)} classes")
        if not quiet:
            found.tell()
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's CocoDataset, opened by the rules of ``elsa.data.annotations``. Labels follow ``metainfo.classes``: a
    class is the category of its name, whatever the order and the ids in the file.

    ``metainfo=dict(classes=("person", "car"), category_names={"person": "pedestrian"})`` says that the class "person"
    is the category "pedestrian" of this file.

    Masks are needed where the pipeline loads them (``with_mask=True``). ``metainfo["category_ids"]`` are the file's ids
    of the classes.

    Attributes:
        metrics: mmdet's metric → ours that stands for it.

    Raises:
        ConfigError: ``metainfo`` has no classes, or names of none.
        DataError: see CheckedCOCO; images that are missing or of another size; no image that can be trained on.
    """

    metrics: ClassVar = {"CocoMetric": "CheckedCocoMetric"}

    def __init__(self, *arguments: Any, pipeline: Any = (), **options: Any) -> None:
        self.pipeline_settings = pipeline
        super().__init__(*arguments, pipeline=pipeline, **options)

    def COCOAPI(self, path: str) -> CheckedCOCO:  # mmdet calls it by this name
        classes, names = self.classes_and_names()
        masks = find_key(self.pipeline_settings, "with_mask", False)
        coco = CheckedCOCO(path, classes, names, masks)
        self._metainfo["category_ids"] = coco.category_ids
        return coco

    def classes_and_names(self) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """``metainfo.classes``, and ``metainfo.category_names``: class → its name in the file."""
        classes, names = self._metainfo.get("classes"), self._metainfo.get("category_names", {})
        if isinstance(classes, str) or not all(isinstance(name, str) for name in classes or [None]):
            raise ConfigError(f"metainfo.classes must be a list of names, got {classes!r}; one class is ('NAME',)")
        if doubles := sorted({name for name in classes if list(classes).count(name) > 1}):
            raise ConfigError(f"metainfo.classes has {', '.join(map(repr, doubles))} more than once")
        if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
            raise ConfigError(f"metainfo.category_names must be a dict of class → its name in the file, got {names!r}")
        if unknown := [name for name in names if name not in classes]:
            near = did_you_mean(unknown[0], classes)
            raise ConfigError(f"metainfo.category_names has {unknown[0]!r}, which is none of metainfo.classes{near}")
        return tuple(classes), names

    def load_data_list(self) -> list[dict[str, Any]]:
        if self.data_root and not Path(self.data_root).is_dir():
            raise DataError(f"data_root {self.data_root} does not exist; --set data_root=DIR names another")
        return super().load_data_list()

    def full_init(self) -> None:
        if not self._fully_initialized:
            super().full_init()
            if not len(self):
                raise DataError(f"{self.ann_file}: no image has an object that can be used")
            check_images(self, find_key(self.pipeline_settings, "orientation", "turned"))


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """mmdet's CocoMetric on the annotations of a CheckedCocoDataset; only images that were evaluated count.

    A number that the data do not give, such as the AP of objects of a size that none has, is NaN, not −1.

    Args:
        dataset: whose predictions are evaluated.
        ann_file: if given, that of the data set.

    Raises:
        ConfigError: ``ann_file`` is another file.
        DataError: the annotations have no masks, but masks are to be evaluated.
    """

    def __init__(self, dataset: CheckedCocoDataset, ann_file: str | None = None, **options: Any) -> None:
        if ann_file is not None and Path(ann_file).resolve() != Path(dataset.ann_file).resolve():
            raise ConfigError(
                f"the evaluator's ann_file {ann_file} is another file than its data set's {dataset.ann_file}; "
                "leave ann_file out: the data set's is taken"
            )
        super().__init__(None, **options)
        classes, names = dataset.classes_and_names()
        self._coco_api = CheckedCOCO(dataset.ann_file, classes, names, "segm" in self.metrics, quiet=True)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        self.img_ids = sorted({truth["img_id"] for truth, _ in results})
        return {name: np.nan if value < 0 else value for name, value in super().compute_metrics(results).items()}
