"""ADE20K data sets whose images and label maps are checked against each other, and per-class results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.evaluation import IoUMetric

from elsa.core import DataError

from ..decode import UnreadableImage, decode_labels

UNLABELLED, IGNORED = 0, 255


class PairedMaps(BaseSegDataset):
    """Images and label maps in ADE20K's form: every image has its map and every map its image; in the files 0 is
    unlabelled and 1 … n are the classes (``reduce_zero_label``).

    Raises:
        DataError: a folder that is missing or empty; images without label maps, or the reverse.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        if self.data_root and not Path(self.data_root).is_dir():
            raise DataError(f"data_root {self.data_root} does not exist; --set data_root=DIR names another")
        images, maps = (Path(self.data_prefix[kind]) for kind in ("img_path", "seg_map_path"))
        for folder in (images, maps):
            if not folder.is_dir():
                raise DataError(f"{folder} does not exist")
        have = {path.stem for path in images.rglob(f"*{self.img_suffix}")}
        labelled = {path.stem for path in maps.rglob(f"*{self.seg_map_suffix}")}
        for missing, what in ((have - labelled, "no label map"), (labelled - have, "a label map but no image")):
            if missing:
                raise DataError(f"{images}: {len(missing)} with {what}: {', '.join(sorted(missing)[:3])}")
        if not have:
            raise DataError(f"{images} has no *{self.img_suffix}")
        items = super().load_data_list()
        for item in items:
            item["num_classes"] = len(self.METAINFO.get("classes") or self.metainfo["classes"])
        return items


@DATASETS.register_module()
class CheckedADE20KDataset(PairedMaps, ADE20KDataset):
    """mmseg's ADE20KDataset, checked as PairedMaps."""


@DATASETS.register_module()
class CheckedMapsDataset(PairedMaps):
    """A data set in ADE20K's form with classes of its own: ``metainfo=dict(classes=…, palette=…)``."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(img_suffix=".jpg", seg_map_suffix=".png", reduce_zero_label=True, **arguments)


@TRANSFORMS.register_module()
class LoadCheckedAnnotations(LoadAnnotations):
    """mmseg's LoadAnnotations for label maps of one channel, of the image's size, with labels of the data set.

    Raises:
        DataError: a map that is none of that; the message names it.
    """

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        if (path := results.get("seg_map_path")) is None:
            return  # mmseg's own inference gives images alone
        try:
            labels = decode_labels(path)
        except UnreadableImage as error:
            raise DataError(f"label map {path} cannot be read: {error}") from error
        if labels.ndim != 2:
            raise DataError(
                f"label map {path} has {labels.shape[2]} channels: it must hold one label per pixel, no colours"
            )
        if labels.shape != tuple(results["ori_shape"]):
            size, other = (f"{shape[1]}×{shape[0]}" for shape in (labels.shape, results["ori_shape"]))
            raise DataError(f"label map {path} is {size}, its image {other}")
        classes, highest = results["num_classes"], int(labels[labels != IGNORED].max(initial=0))
        if highest > classes:
            raise DataError(
                f"label map {path} has label {highest}; there are {UNLABELLED} for unlabelled and 1 … {classes}"
            )
        super()._load_seg_map(results)


@METRICS.register_module()
class ClasswiseIoUMetric(IoUMetric):
    """mmseg's IoUMetric, in percent, with the IoU of each class as ``IoU/CLASS``; NaN where a class never occurs."""

    def total_area_to_metrics(self, *arguments: Any, **options: Any) -> dict[str, np.ndarray]:
        self.values = IoUMetric.total_area_to_metrics(*arguments, **options)
        return dict(self.values)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        metrics = {name: float(value) for name, value in super().compute_metrics(results).items()}
        per_class = zip(self.dataset_meta["classes"], self.values["IoU"], strict=True)
        return {**metrics, **{f"IoU/{name}": round(float(value) * 100, 2) for name, value in per_class}}
