"""Pictures and files of what a detector or segmentor says of images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _pictures import draw_grid, save_figure
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import VISUALIZERS
from mmengine.runner import Runner
from PIL import Image
from pycocotools import mask as coco_masks

from elsa.data import UNREADABLE
from elsa.engine import logger, write_then_rename

# COCO's category ids of its 80 classes leave out these.
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CLASSES = 80


def category_ids(classes: Sequence[str]) -> list[int]:
    """The id of each class in COCO's files: with gaps for COCO's own classes, else 1, 2, …"""
    if len(classes) == COCO_CLASSES and classes[0] == "person":
        return [number for number in range(1, COCO_CLASSES + len(COCO_GAPS) + 1) if number not in COCO_GAPS]
    return list(range(1, len(classes) + 1))


def drawing(visualizer: Any, image: np.ndarray, sample: Any, threshold: float, with_truth: bool) -> Image.Image:
    """The image with what was found; ground truth beside it on the left where asked for."""
    visualizer.add_datasample("image", image, sample, draw_gt=with_truth, pred_score_thr=threshold)
    return Image.fromarray(visualizer.get_image())


def make_visualizer(config: Config, metainfo: Mapping[str, Any]) -> Any:
    visualizer = VISUALIZERS.build({**config.visualizer, "name": f"elsa{id(metainfo)}"})
    visualizer.dataset_meta = dict(metainfo)
    return visualizer


class PicturesOfTest(Hook):
    """Keeps some images of an evaluation, spread over it, with prediction and ground truth side by side."""

    def __init__(self, count: int, metainfo: Mapping[str, Any], threshold: float = 0.3) -> None:
        self.count, self.metainfo, self.threshold = count, metainfo, threshold
        self.cells: list[tuple[Image.Image, str, str]] = []

    def before_test(self, runner: Runner) -> None:
        total = len(runner.test_dataloader)
        self.wanted = {round(index) for index in np.linspace(0, total - 1, min(self.count, total))}
        self.visualizer = make_visualizer(runner.cfg, self.metainfo)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if batch_idx in self.wanted:
            sample = outputs[0]
            image = np.asarray(Image.open(sample.img_path).convert("RGB"))
            picture = drawing(self.visualizer, image, sample, self.threshold, with_truth=True)
            self.cells.append((picture, Path(sample.img_path).name, "black"))

    def save(self, path: Path, title: str) -> None:
        if self.cells:
            draw_grid(self.cells, path, title, columns=3, cell=(4.6, 2.6))
            logger.info("%-24s %s", "pictures", path)


class Predictions:
    """Predictions of images one by one: a picture each in the output folder, and the numbers in COCO's form."""

    def __init__(self, config: Config, classes: Sequence[str], args: argparse.Namespace) -> None:
        self.classes, self.folder, self.threshold = list(classes), args.output, args.threshold
        steps = [step for step in config.test_dataloader.dataset.pipeline if step["type"] != "LoadAnnotations"]
        self.pipeline = Compose(steps)
        self.visualizer = make_visualizer(config, {"classes": tuple(classes), "palette": "random"})
        self.ids = category_ids(classes)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.drawn = 0

    @torch.inference_mode()
    def add(self, model: torch.nn.Module, path: Path) -> None:
        """Predicts one image; one that cannot be read is named and left out."""
        try:
            with Image.open(path) as opened:
                image = np.asarray(opened.convert("RGB"))
        except UNREADABLE as error:
            logger.warning("skipping %s: it cannot be read (%s)", path, error)
            return
        number = len(self.images) + 1
        sample = model.test_step(pseudo_collate([self.pipeline({"img_path": str(path), "img_id": number})]))[0].cpu()
        self.images.append({"id": number, "file_name": str(path), "height": image.shape[0], "width": image.shape[1]})
        found = sample.pred_instances
        self.drawn += int((found.scores > self.threshold).sum())
        for box, score, label, mask in zip(
            found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.masks.numpy(), strict=True
        ):
            left, top, right, bottom = box
            encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            self.annotations.append({
                "id": len(self.annotations) + 1,
                "image_id": number,
                "category_id": self.ids[label],
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "score": round(score, 5),
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode()},
            })  # fmt: skip
        picture = drawing(self.visualizer, image, sample, self.threshold, with_truth=False)
        write_then_rename(
            self.folder / f"{number:05d}_{path.stem}.png", lambda beside: picture.save(beside, format="png")
        )

    def as_coco(self) -> dict[str, Any]:
        categories = [{"id": number, "name": name} for number, name in zip(self.ids, self.classes, strict=True)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def draw_dense_curves(records: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Loss, metrics and learning rate over epochs, from the records of a run's log."""
    train = [record for record in records if record["kind"] == "train"]
    evaluated = [record for record in records if record["kind"] == "eval"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, metric, rate = figure.subplots(1, 3)
    for name in [name for name in train[-1] if name.startswith(("loss", "decode.loss", "aux.loss"))] if train else []:
        width = 2 if name == "loss" else 1
        loss.plot([r["epoch"] for r in train], [r.get(name) for r in train], label=name, linewidth=width)
    loss.set(title="training loss", xlabel="epoch", ylim=(0, None))
    names = [n for n in evaluated[-1] if n.endswith(("mAP", "mAP_50", "mIoU", "aAcc", "mAcc"))] if evaluated else []
    for name in names:
        metric.plot([r["epoch"] for r in evaluated], [r[name] for r in evaluated], "o-", ms=3, label=name)
    metric.set(title="validation", xlabel="epoch", ylim=(0, None))
    rate.plot([r["epoch"] for r in train], [r["lr"] for r in train])
    rate.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    for axis in (loss, metric, rate):
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    save_figure(figure, path)
