"""A detector or a segmentor to be looked at."""

from __future__ import annotations

import argparse
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.roi_heads import CascadeRoIHead, SingleRoIExtractor
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from elsa.core import ConfigError
from elsa.data.mm.loaders import prepare as run_pipeline
from elsa.engine import Runtime

from ..pictures import NAME, plain
from ..visualize.evidence import Evidence, eigen_cam, find_class, grad_cam
from ..visualize.look import Picture, Subject, check, look, open_pictures
from .pictures import pixels_of, test_pipeline
from .prediction import load_model
from .session import mistakes_named


def look_at_dense(config: Config, args: argparse.Namespace, runtime: Runtime, explained: type[Explained]) -> None:
    """Every view of a detector's or segmentor's backbone on images, as the test pipeline makes them.

    Args:
        explained: of the task.

    Raises:
        ConfigError: an option names what there is not, or the checkpoint, the recipe and its model differ in classes.
        DataError: not one image can be read.
    """
    check(args)
    model, classes, _ = load_model(config, args, runtime)
    model.to(runtime.device).eval().requires_grad_(False)
    target = None if args.target is None else find_class(classes, args.target)
    with mistakes_named("test_dataloader.dataset"):
        pipeline = test_pipeline(config)
    batches: dict[Path, Any] = {}

    def load(path: Path) -> Picture:
        with mistakes_named(str(path)):
            item = run_pipeline(pipeline, {"img_path": str(path), "img_id": 1}, str(path))
            batches[path] = pseudo_collate([item])
            images = model.data_preprocessor(copy.deepcopy(batches[path]), False)["inputs"]
        return Picture(path, pixels_of(item["inputs"]), images)

    pictures = open_pictures(args.images, load)
    explain = explained(model, classes, target, batches)
    backbone = model.backbone
    name = config.model.backbone.get("variant", type(backbone).__name__)
    with mistakes_named("the network"):
        look(Subject(f"{config.model.type} with {name}", backbone, pictures, explain), args)


class Scored(nn.Module):
    """A model that gives one score of an image.

    Args:
        score: of the neck's maps, or the backbone's where there is no neck.
        level: of the backbone's maps.

    Attributes:
        tap: what the map of that level passes through, for Grad-CAM.
    """

    def __init__(self, model: nn.Module, score: Callable[[Sequence[Tensor]], Tensor], level: int) -> None:
        super().__init__()
        self.model, self.score, self.level, self.tap = model, score, level, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        maps = list(self.model.backbone(images))
        maps[self.level] = self.tap(maps[self.level])
        return self.score(self.model.neck(maps) if self.model.with_neck else maps)


class Explained(ABC):
    """Grad-CAM at a map of the backbone.

    Args:
        target: the class; None: the one that the picture has most of.
        batches: of each picture, as the model's ``test_step`` takes it.
    """

    def __init__(self, model: nn.Module, classes: Sequence[str], target: int | None, batches: Mapping) -> None:
        self.model, self.classes, self.target, self.batches = model, classes, target, batches

    @abstractmethod
    def __call__(self, picture: Picture) -> Evidence: ...

    def cam(self, picture: Picture, score: Callable[[Sequence[Tensor]], Tensor], level: int = -1) -> np.ndarray:
        scored = Scored(self.model, score, level)
        return grad_cam(scored, [scored.tap], picture.images)

    def name(self, label: int) -> str:
        return plain(self.classes[label], NAME)


class ExplainedMap(Explained):
    """Of a segmentor, at the last map: the class's logits, summed over the pixels that are said to be of it, or of a
    class that no pixel is said to be of, over all."""

    def __call__(self, picture: Picture) -> Evidence:
        with torch.no_grad():
            maps = self.model.extract_feat(picture.images)
            labels = self._logits(maps).argmax(1)
        label = int(labels.flatten().bincount().argmax()) if self.target is None else self.target
        where = labels == label
        share = where.float().mean().item()
        where = where if where.any() else torch.ones_like(where)
        heat = self.cam(picture, lambda maps: (self._logits(maps)[:, label] * where).sum((1, 2)))
        which = "the most frequent class" if self.target is None else "asked for"
        return Evidence(heat, f"Grad-CAM of the logits of {self.name(label)}, {which} ({share:.0%} of the picture)")

    def _logits(self, maps: Sequence[Tensor]) -> Tensor:
        """(1, classes, h, w); heads of a cascade each take what the one before says."""
        head = self.model.decode_head
        heads = list(head) if isinstance(head, nn.ModuleList) else [head]
        out = heads[0](maps)
        for further in heads[1:]:
            out = further(maps, out)
        return out


class ExplainedObject(Explained):
    """Of a detector with RoI heads: the class's logit of the surest object, at the map of the level that the object is
    read from. Of any other the last map's principal component, as its scores have no one place."""

    def __call__(self, picture: Picture) -> Evidence:
        if not getattr(self.model, "with_roi_head", False) or not self.model.roi_head.with_bbox:
            if self.target is not None:
                raise ConfigError("--target: a detector without RoI heads is explained by Eigen-CAM, of no class")
            scored = Scored(self.model, lambda maps: maps[-1].sum((1, 2, 3)), -1)
            return Evidence(eigen_cam(scored, [scored.tap], picture.images), "Eigen-CAM of the backbone's last map")
        with torch.no_grad():
            sample = self.model.test_step(self.batches[picture.path])[0]
        found = sample.pred_instances
        if self.target is not None:
            found = found[found.labels == self.target]
        if not len(found):
            wanted = "object" if self.target is None else self.name(self.target)
            return Evidence(None, f"no {wanted} is found, so there is nothing to explain")
        best = int(found.scores.argmax())
        label = int(found.labels[best])
        box = found.bboxes[best] * found.bboxes.new_tensor(sample.scale_factor).repeat(2)
        rois = torch.cat([box.new_zeros(1), box])[None]
        level = self._level(rois)
        heat = self.cam(picture, lambda maps: self._logits(maps, rois)[:, label], level)
        at = "the last map" if level < 0 else f"map {level + 1}"
        text = f"Grad-CAM of {self.name(label)}, the surest object ({found.scores[best]:.0%}), framed; at {at}"
        left, top, right, bottom = box.tolist()
        return Evidence(heat, text, (left, top, right, bottom))

    def _level(self, rois: Tensor) -> int:
        """The map that an object of that size is read from; −1, the last, where the extractor reads from all."""
        extractor = self.model.roi_head.bbox_roi_extractor
        extractor = extractor[-1] if isinstance(extractor, nn.ModuleList) else extractor
        if not isinstance(extractor, SingleRoIExtractor):
            return -1
        return int(extractor.map_roi_levels(rois, extractor.num_inputs))

    def _logits(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        head = self.model.roi_head
        if isinstance(head, CascadeRoIHead):
            return head._bbox_forward(head.num_stages - 1, maps, rois)["cls_score"]
        return head._bbox_forward(maps, rois)["cls_score"]
