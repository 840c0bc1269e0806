"""Pictures and files of what a detector or segmentor says of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS
from PIL import Image
from pycocotools import mask as coco_masks

from elsa.core import logger, write_then_rename
from elsa.data import UnreadableImage, decode
from elsa.data.mm.decoding import with_our_decoder

from ..pictures import draw_grid

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

    def __init__(self, metainfo: Mapping[str, Any], threshold: float = 0.3) -> None:
        settings = dict(type="DetLocalVisualizer", vis_backends=[], name=f"drawing{id(self)}")
        self.visualizer = VISUALIZERS.build(settings)
        self.visualizer.dataset_meta, self.threshold = {"palette": "random", **metainfo}, threshold

    def __call__(self, image: np.ndarray, sample: Any, with_truth: bool) -> Image.Image:
        self.visualizer.add_datasample("image", image, sample, draw_gt=with_truth, pred_score_thr=self.threshold)
        return Image.fromarray(self.visualizer.get_image())


class MapDrawing:
    """The image, its label map where there is one, and the predicted map, with a legend of the classes present."""

    def __init__(self, metainfo: Mapping[str, Any]) -> None:
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


class PicturesOfTest:
    """Keeps some images of an evaluation, spread over it, with prediction and ground truth side by side."""

    def __init__(self, count: int, batches: int, drawing: Any) -> None:
        self.wanted = {round(index) for index in np.linspace(0, batches - 1, min(count, batches))}
        self.drawing = drawing
        self.cells: list[tuple[Image.Image, str, str]] = []

    def note(self, number: int, found: Sequence[Any]) -> None:
        if number in self.wanted:
            sample = found[0]
            image = np.asarray(decode(sample.img_path))
            self.cells.append((self.drawing(image, sample, with_truth=True), Path(sample.img_path).name, "black"))

    def save(self, path: Path, title: str) -> None:
        if self.cells:
            width, height = self.cells[0][0].size
            draw_grid(self.cells, path, title, columns=2, cell=(7.0, 7.0 * height / width + 0.3))
            logger.info("%-24s %s", "pictures", path)


class Predictions(ABC):
    """Predictions of images one by one: a picture each in the output folder, and the numbers for a JSON file."""

    def __init__(self, config: Config, classes: Sequence[str], folder: Path) -> None:
        self.classes, self.folder = list(classes), folder
        dataset = config.test_dataloader.dataset
        steps = with_our_decoder([step for step in dataset.pipeline if "Annotations" not in step["type"]])
        self.pipeline = Compose(steps)
        named = dataset.get("metainfo", {}).get("palette")
        palette = named or DATASETS.get(dataset.type).METAINFO.get("palette", ())
        known = {"palette": palette} if len(palette) == len(classes) else {}
        self.drawing = self.make_drawing({"classes": tuple(classes), **known})
        self.images: list[dict[str, Any]] = []

    @abstractmethod
    def make_drawing(self, metainfo: Mapping[str, Any]) -> Any:
        """What draws a picture of a prediction."""

    @abstractmethod
    def note(self, sample: Any, stem: str) -> None:
        """Keeps the numbers of a prediction for the JSON file."""

    @torch.inference_mode()
    def add(self, model: torch.nn.Module, path: Path) -> None:
        """Predicts one image; one that cannot be read is named and left out."""
        try:
            image = np.asarray(decode(path))
        except UnreadableImage as error:
            logger.warning("skipping %s", error)
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

    def __init__(self, config: Config, classes: Sequence[str], folder: Path, threshold: float) -> None:
        self.threshold = threshold
        super().__init__(config, classes, folder)
        self.ids, self.drawn = category_ids(classes), 0
        self.annotations: list[dict[str, Any]] = []

    def make_drawing(self, metainfo: Mapping[str, Any]) -> ObjectDrawing:
        return ObjectDrawing(metainfo, self.threshold)

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

    def make_drawing(self, metainfo: Mapping[str, Any]) -> MapDrawing:
        return MapDrawing(metainfo)

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
