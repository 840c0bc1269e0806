"""ADE20K data sets whose images and label maps are checked against each other, and per-class results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.evaluation import IoUMetric

from elsa.core import ConfigError, DataError, logger

from ..decode import STORED, TURNED, Header, UnreadableImage
from ..label_colours import read_label_map
from ..label_maps import OTHER_SIZE, UNREADABLE, Labelling, header_of, look_at_map, look_over
from ..pairs import find_pairs
from .decoding import DecodeImage

LOOK_AT = 200  # maps, when a set is opened


class PairedMaps(BaseSegDataset):
    """Images and label maps, of which every image has its map and every map its image.

    In ADE20K's form, ``reduce_zero_label=True``, 0 is unlabelled in the files and 1 … n are the classes; with
    ``reduce_zero_label=False`` they are 0 … n − 1. 255 is ignored. ``metainfo`` may have ``label_map``, numbers in the
    files and those that they stand for: ``{255: 1}`` for masks of 0 and 255; or colours and what they stand for, all
    that occur: ``{(0, 0, 0): 255, (128, 0, 0): 0}``.

    Args:
        img_suffix, seg_map_suffix: what the names of images and maps end with; None: the endings of all images that can
            be read, and of .png, .tif and .bmp maps.
        reduce_zero_label: whether 0 is unlabelled.
        look: so many maps are looked at when the set is opened.

    Raises:
        ConfigError: no class names, or a ``label_map`` that makes no labels.
        DataError: a folder that is missing or empty; images without label maps, or the reverse; maps that are none, or
            have not one labelled pixel; a single class.
    """

    def __init__(
        self,
        img_suffix: str | None = None,
        seg_map_suffix: str | None = None,
        reduce_zero_label: bool = True,
        look: int = LOOK_AT,
        metainfo: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        facts = dict(metainfo or {})
        self.look = look
        self.replaced, self.colours = read_label_map(facts.pop("label_map", None))
        given = dict(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce_zero_label)
        super().__init__(metainfo=facts, **given, **arguments)

    @cached_property
    def labelling(self) -> Labelling:
        """What the numbers in the files mean."""
        own, known = self.metainfo.get("classes") or (), self.METAINFO.get("classes")
        if not own or len(set(own)) < len(own):
            raise ConfigError(f"metainfo.classes must name each class once, got {list(own)}")
        return Labelling(len(known or own), self.reduce_zero_label, self.replaced, self.label_map or {}, self.colours)

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        super().full_init()
        if not self.look or not len(self):
            return
        infos = [self.get_data_info(index) for index in range(len(self))]
        pairs = [(info["img_path"], info["seg_map_path"]) for info in infos]
        steps = [step for step in self.pipeline.transforms if isinstance(step, DecodeImage)]
        orientation = steps[0].orientation if steps else TURNED
        names = self.METAINFO.get("classes") or self.metainfo["classes"]
        for note in look_over(pairs, self.labelling, names, orientation, self.look):
            logger.info("%s: %s", self.data_prefix["seg_map_path"], note)
        if len(own := self.metainfo["classes"]) == 1:
            raise DataError(
                f"one class ({own[0]}) leaves nothing to tell apart: name two, classes=('background', {own[0]!r}), "
                "with reduce_zero_label=False, where 0 is the first, and num_classes=2 in the heads"
            )

    def load_data_list(self) -> list[dict[str, Any]]:
        if self.data_root and not os.path.isdir(self.data_root):
            raise DataError(f"data_root {self.data_root} does not exist; --set data_root=DIR names another")
        images, maps = (Path(self.data_prefix[kind]) for kind in ("img_path", "seg_map_path"))
        for folder in (images, maps):
            if not os.path.isdir(folder):
                raise DataError(f"{folder} does not exist")
        pairs = find_pairs(images, maps, self.img_suffix, self.seg_map_suffix)
        ends = f"{self.img_suffix or 'images'} and {self.seg_map_suffix or 'label maps'}"
        for name, files in pairs.doubles:
            raise DataError(f"{images}: {len(files)} files have the name {name}: {', '.join(sorted(files))}")
        for alone, what in ((pairs.images, "no label map"), (pairs.maps, "a label map but no image")):
            if alone:
                listed = ", ".join(list(alone)[:3])
                raise DataError(f"{images}: {len(alone)} with {what}: {listed} (looked for {ends} in {maps})")
        if not pairs.both:
            raise DataError(f"{images} has no {self.img_suffix or 'images by their names (.jpg, .png …)'}")
        chosen = sorted(pairs.both[name] for name in self._named(list(pairs.both)))
        return [{"img_path": image, "seg_map_path": label_map, "seg_fields": []} for image, label_map in chosen]

    def get_data_info(self, index: int) -> dict[str, Any]:
        facts = {"labelling": self.labelling, "reduce_zero_label": self.reduce_zero_label}
        return {**super().get_data_info(index), **facts}

    def _named(self, names: list[str]) -> list[str]:
        """Those of the names that ``ann_file`` lists; all where there is none."""
        if not self.ann_file:
            return names
        try:
            wanted = [line.strip() for line in Path(self.ann_file).read_text("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"ann_file {self.ann_file} cannot be read: {error}") from error
        if absent := sorted(set(wanted) - set(names)):
            raise DataError(f"ann_file {self.ann_file} names {len(absent)} that are not there: {', '.join(absent[:3])}")
        return wanted


@DATASETS.register_module()
class CheckedADE20KDataset(PairedMaps, ADE20KDataset):
    """mmseg's ADE20KDataset, checked as PairedMaps."""


@DATASETS.register_module()
class CheckedMapsDataset(PairedMaps):
    """Images and label maps with classes of their own: ``metainfo=dict(classes=…, palette=…)``."""


@TRANSFORMS.register_module()
class LoadCheckedAnnotations(LoadAnnotations):
    """mmseg's LoadAnnotations for label maps that keep the rules of ``look_at_map``.

    Raises:
        UnreadableImage: a map that cannot be decoded.
        DataError: a map that breaks another rule; the message names it.
    """

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        if (path := results.get("seg_map_path")) is None:
            return  # mmseg's own inference gives images alone
        size = tuple(results["ori_shape"][1::-1])
        labelling: Labelling = results["labelling"]
        look = look_at_map(path, labelling, Header(size, size, 1, "", "", False))
        if (OTHER_SIZE in dict(look.faults)) and (header := header_of(results["img_path"])):
            look = look_at_map(path, labelling, header, TURNED if header.size == size else STORED)
        for kind, what in look.faults:
            raise (UnreadableImage if kind == UNREADABLE else DataError)(f"label map {path} {what}")
        results["gt_seg_map"] = labelling.labels(look.values, look.numbers)
        results["seg_fields"].append("gt_seg_map")


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
