"""Pictures and files of what a detector or segmentor says of images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _pictures import draw_grid, save_figure
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, VISUALIZERS
from mmengine.runner import Runner
from PIL import Image
from pycocotools import mask as coco_masks

from elsa.data import UNREADABLE
from elsa.engine import logger, write_then_rename

# COCO's category ids of its 80 classes leave out these.
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CLASSES = 80
IGNORED = 255  # label of pixels without a class


def category_ids(classes: Sequence[str]) -> list[int]:
    """The id of each class in COCO's files: with gaps for COCO's own classes, else 1, 2, …"""
    if len(classes) == COCO_CLASSES and classes[0] == "person":
        return [number for number in range(1, COCO_CLASSES + len(COCO_GAPS) + 1) if number not in COCO_GAPS]
    return list(range(1, len(classes) + 1))


class ObjectDrawing:
    """Boxes and masks by mmdet's visualizer; ground truth beside them on the left where asked for."""

    def __init__(self, config: Config, metainfo: Mapping[str, Any], threshold: float) -> None:
        self.visualizer = VISUALIZERS.build({**config.visualizer, "name": f"drawing{id(self)}"})
        self.visualizer.dataset_meta, self.threshold = {"palette": "random", **metainfo}, threshold

    def __call__(self, image: np.ndarray, sample: Any, with_truth: bool) -> Image.Image:
        self.visualizer.add_datasample("image", image, sample, draw_gt=with_truth, pred_score_thr=self.threshold)
        return Image.fromarray(self.visualizer.get_image())


class MapDrawing:
    """The image, its label map where there is one, and the predicted map, with a legend of the classes present."""

    def __init__(self, config: Config, metainfo: Mapping[str, Any]) -> None:
        self.classes = list(metainfo["classes"])
        self.palette = np.array(metainfo.get("palette") or colours(len(self.classes)), np.float64)

    def __call__(self, image: np.ndarray, sample: Any, with_truth: bool) -> Image.Image:
        maps = {"prediction": sample.pred_sem_seg.data}
        if with_truth and "gt_sem_seg" in sample:
            maps = {"ground truth": sample.gt_sem_seg.data, **maps}
        labels = {name: value.squeeze().cpu().numpy() for name, value in maps.items()}
        width = 3.2 * (1 + len(labels))
        figure = Figure(figsize=(width, 3.2 * image.shape[0] / image.shape[1] + 0.9), layout="constrained", dpi=110)
        axes = figure.subplots(1, 1 + len(labels))
        for axis, name in zip(axes, ("image", *labels), strict=True):
            axis.imshow(image if name == "image" else self.over(image, labels[name]))
            axis.set(title=name)
            axis.set_axis_off()
        present = sorted({int(label) for value in labels.values() for label in np.unique(value)} - {IGNORED})
        patches = [Patch(color=self.palette[label] / 255, label=self.classes[label]) for label in present]
        if patches:
            figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 8), fontsize=8)
        return as_image(figure)

    def over(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The image under the colours of its labels; unlabelled pixels grey."""
        grey = np.broadcast_to(image.mean(-1, keepdims=True) * 0.4, image.shape)
        known = labels != IGNORED
        coloured = 0.4 * image + 0.6 * self.palette[np.where(known, labels, 0)]
        return np.where(known[..., None], coloured, grey).astype(np.uint8)


def colours(count: int) -> np.ndarray:
    """Colours for classes without a palette, in 0 … 255."""
    table = colormaps["tab20"](np.arange(count) % 20)
    return table[:, :3] * 255


def as_image(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def make_drawing(config: Config, metainfo: Mapping[str, Any], threshold: float = 0.3) -> Any:
    return (
        MapDrawing(config, metainfo) if config.default_scope == "mmseg" else ObjectDrawing(config, metainfo, threshold)
    )


class PicturesOfTest(Hook):
    """Keeps some images of an evaluation, spread over it, with prediction and ground truth side by side."""

    def __init__(self, count: int, metainfo: Mapping[str, Any]) -> None:
        self.count, self.metainfo = count, metainfo
        self.cells: list[tuple[Image.Image, str, str]] = []

    def before_test(self, runner: Runner) -> None:
        total = len(runner.test_dataloader)
        self.wanted = {round(index) for index in np.linspace(0, total - 1, min(self.count, total))}
        self.drawing = make_drawing(runner.cfg, self.metainfo)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if batch_idx in self.wanted:
            sample = outputs[0]
            image = np.asarray(Image.open(sample.img_path).convert("RGB"))
            self.cells.append((self.drawing(image, sample, with_truth=True), Path(sample.img_path).name, "black"))

    def save(self, path: Path, title: str) -> None:
        if self.cells:
            width, height = self.cells[0][0].size
            draw_grid(self.cells, path, title, columns=2, cell=(7.0, 7.0 * height / width + 0.3))
            logger.info("%-24s %s", "pictures", path)


class Predictions:
    """Predictions of images one by one: a picture each in the output folder, and the numbers for a JSON file."""

    def __init__(self, config: Config, classes: Sequence[str], args: argparse.Namespace) -> None:
        self.classes, self.folder, self.threshold = list(classes), args.output, args.threshold
        steps = [step for step in config.test_dataloader.dataset.pipeline if "Annotations" not in step["type"]]
        self.pipeline = Compose(steps)
        dataset = config.test_dataloader.dataset
        named = dataset.get("metainfo", {}).get("palette")
        palette = named or DATASETS.get(dataset.type).METAINFO.get("palette", ())
        known = {"palette": palette} if len(palette) == len(classes) else {}
        self.drawing = make_drawing(config, {"classes": tuple(classes), **known}, args.threshold)
        self.images: list[dict[str, Any]] = []

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
        batch = pseudo_collate([self.pipeline({"img_path": str(path), "img_id": number})])
        sample = model.test_step(batch)[0].cpu()
        self.images.append({"id": number, "file_name": str(path), "height": image.shape[0], "width": image.shape[1]})
        self.note(sample, f"{number:05d}_{path.stem}")
        self.write(f"{number:05d}_{path.stem}.png", self.drawing(image, sample, with_truth=False))

    def write(self, name: str, picture: Image.Image) -> None:
        write_then_rename(self.folder / name, lambda beside: picture.save(beside, format="png"))


class ObjectPredictions(Predictions):
    """Boxes and masks, as JSON in COCO's form with scores."""

    def __init__(self, config: Config, classes: Sequence[str], args: argparse.Namespace) -> None:
        super().__init__(config, classes, args)
        self.ids, self.drawn = category_ids(classes), 0
        self.annotations: list[dict[str, Any]] = []

    def note(self, sample: Any, stem: str) -> None:
        found = sample.pred_instances
        self.drawn += int((found.scores > self.threshold).sum())
        for box, score, label, mask in zip(
            found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.masks.numpy(), strict=True
        ):
            left, top, right, bottom = box
            encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            self.annotations.append({
                "id": len(self.annotations) + 1,
                "image_id": len(self.images),
                "category_id": self.ids[label],
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "score": round(score, 5),
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode()},
            })  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        categories = [{"id": number, "name": name} for number, name in zip(self.ids, self.classes, strict=True)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}

    def summary(self) -> str:
        return f"{self.drawn} objects of at least {self.threshold:g}"


class MapPredictions(Predictions):
    """Label maps as files in ADE20K's form (0 unlabelled, 1 … n the classes), and shares of the classes as JSON."""

    def note(self, sample: Any, stem: str) -> None:
        labels = sample.pred_sem_seg.data.squeeze().numpy()
        numbers, counts = np.unique(labels, return_counts=True)
        shares = {
            self.classes[number]: round(count / labels.size, 4) for number, count in zip(numbers, counts, strict=True)
        }
        self.images[-1].update(labels=f"{stem}_labels.png", shares=shares)
        self.write(f"{stem}_labels.png", Image.fromarray((labels + 1).astype(np.uint8)))

    def as_json(self) -> dict[str, Any]:
        return {"images": self.images, "classes": self.classes}

    def summary(self) -> str:
        return f"{len({name for image in self.images for name in image['shares']})} classes"


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
