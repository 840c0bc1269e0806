"""Pictures and files of what a detector or segmentor says of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS
from PIL import Image
from pycocotools import mask as coco_masks

from elsa.core import DataError, logger, make_folder, without_warnings, write_then_rename
from elsa.data import UnreadableImage, decode
from elsa.data.annotations import Annotations
from elsa.data.decode import TURNED
from elsa.data.mm.decoding import with_our_decoder
from elsa.data.mm.loaders import prepare

from ..pictures import add_legend, as_image, fitted, grid, plain, save_figure, told

# COCO's category ids of its 80 classes leave out these.
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CLASSES = 80
IGNORED = 255  # label of pixels without a class
WIDTH = 7.0  # inches of a picture of an evaluation


def category_ids(config: Config, classes: Sequence[str], known: Sequence[Any] | None) -> list[Any]:
    """The id of each class in the data set's annotation files.

    Args:
        known: as a checkpoint has them; where it has none, the recipe's annotation file is asked, if it is there; else
            they are those of COCO's own classes, or 1, 2, …
    """
    if known and len(known) == len(classes):
        return list(known)
    dataset = config.test_dataloader.dataset
    file = Path(dataset.get("data_root") or "") / str(dataset.get("ann_file") or "")
    if file.is_file():
        with suppress(DataError):
            ids = Annotations(file, masks=False).category_ids(
                classes, dataset.get("metainfo", {}).get("category_names")
            )
            logger.info("the checkpoint has no category ids: predictions have those of %s", file)
            return ids
    count = len(classes)
    is_coco = count == COCO_CLASSES and classes[0] == "person"
    logger.info("the checkpoint has no category ids: predictions have %s", "COCO's" if is_coco else f"1 … {count}")
    if is_coco:
        return [number for number in range(1, COCO_CLASSES + len(COCO_GAPS) + 1) if number not in COCO_GAPS]
    return list(range(1, count + 1))


class ObjectDrawing:
    """Boxes and masks by mmdet's visualizer; ground truth beside them on the left where asked for."""

    def __init__(self, metainfo: Mapping[str, Any], threshold: float = 0.3) -> None:
        settings = dict(type="DetLocalVisualizer", vis_backends=[], name=f"drawing{id(self)}")
        self.visualizer = VISUALIZERS.build(settings)
        classes = tuple(plain(name).replace("$", r"\$") for name in metainfo["classes"])  # no mathematics
        self.visualizer.dataset_meta, self.threshold = {"palette": "random", **metainfo, "classes": classes}, threshold

    def __call__(self, image: np.ndarray, sample: Any, with_truth: bool) -> Image.Image:
        if with_truth and hasattr(boxes := sample.gt_instances.bboxes, "tensor"):  # as pipelines of training have them
            sample = sample.clone()
            sample.gt_instances.bboxes = boxes.tensor
        with without_warnings():  # letters that no font has are drawn as boxes
            self.visualizer.add_datasample("image", image, sample, draw_gt=with_truth, pred_score_thr=self.threshold)
        return Image.fromarray(self.visualizer.get_image())


class MapDrawing:
    """The image, its label map where there is one, and the predicted map, with a legend of the classes present."""

    def __init__(self, metainfo: Mapping[str, Any]) -> None:
        self.classes = list(metainfo["classes"])
        self.palette = np.array(metainfo.get("palette") or colours(len(self.classes)), np.float64)

    def __call__(self, image: np.ndarray, sample: Any, with_truth: bool) -> Image.Image:
        wanted = [("ground truth", "gt_sem_seg")] * with_truth + [("prediction", "pred_sem_seg")]
        labels = {name: sample.get(key).data[0].cpu().numpy() for name, key in wanted if key in sample}
        present = sorted({int(label) for value in labels.values() for label in np.unique(value)} - {IGNORED})
        names = [plain(self.classes[label], 24) for label in present]
        width = 3.2 * (1 + len(labels))
        columns = min(8, max(1, int(width * 12 / (8 + max(map(len, names), default=0)))))
        height = 3.2 * within_reason(image.shape[0] / image.shape[1]) + 0.7 + 0.2 * -(-len(names) // columns)
        figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
        axes = figure.subplots(1, 1 + len(labels))
        for axis, name in zip(axes, ("image", *labels), strict=True):
            axis.imshow(image if name == "image" else self.over(image, labels[name]))
            axis.set(title=name)
            axis.set_axis_off()
        if present:
            patches = [Patch(color=self.palette[label] / 255) for label in present]
            add_legend(figure, patches, names, loc="outside lower center", ncols=columns, fontsize=8)
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


def short_stem(path: Path) -> str:
    """Of a file's name what still fits into a longer one, with what is no text replaced."""
    return plain(path.stem, 50)


def within_reason(ratio: float) -> float:
    """The ratio of height to width of a picture's place, for images of any shape."""
    return min(max(ratio, 1 / 8), 3.0)


class PicturesOfTest:
    """Keeps some images of an evaluation, spread over it, with prediction and ground truth side by side.

    Args:
        count: so many, of as many ``batches``.
        drawing: what draws one.
        orientation: in which images were decoded.
    """

    def __init__(self, count: int, batches: int, drawing: Any, orientation: str = TURNED) -> None:
        self.wanted = {round(index) for index in np.linspace(0, batches - 1, min(count, batches))}
        self.drawing, self.orientation = drawing, orientation
        self.cells: list[tuple[Image.Image, str, str]] = []

    def note(self, number: int, found: Sequence[Any]) -> None:
        if number in self.wanted:
            sample = found[0]
            image = np.asarray(decode(sample.img_path, orientation=self.orientation))
            picture = fitted(self.drawing(image, sample, with_truth=True), WIDTH, 3 * WIDTH)
            self.cells.append((picture, plain(Path(sample.img_path).name), "black"))

    def save(self, path: Path, title: str, of: int) -> None:
        """One picture of all that were kept; the title says of how many images they are."""
        if self.cells:
            save_figure(side_by_side(self.cells, title, of), path)
            logger.info("%-24s %s%s", "pictures", path, told(len(self.cells), of))


def side_by_side(cells: Sequence[tuple[Image.Image, str, str]], title: str, of: int = 0) -> Figure:
    """Drawings of images, two in a row."""
    ratios = [picture.height / picture.width for picture, _, _ in cells]
    height = WIDTH * within_reason(float(np.median(ratios))) + 0.3
    return grid(cells, title, of, columns=2, cell=(WIDTH, height))


def test_pipeline(config: Config) -> Compose:
    """What makes of a file what a model takes in tests, without annotations."""
    steps = [step for step in config.test_dataloader.dataset.pipeline if "Annotations" not in step["type"]]
    return Compose(with_our_decoder(steps, config.get("image_orientation", TURNED)))


def pixels_of(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) as mm's pipelines give it, blue, green, red → (H, W, 3), red, green, blue."""
    return np.ascontiguousarray(image.numpy()[::-1].transpose(1, 2, 0))


class Predictions(ABC):
    """Predictions of images one by one: a picture each in the output folder, and the numbers for a JSON file."""

    def __init__(self, config: Config, classes: Sequence[str], folder: Path) -> None:
        self.classes, self.folder = list(classes), folder
        dataset = config.test_dataloader.dataset
        self.orientation = config.get("image_orientation", TURNED)
        self.pipeline = test_pipeline(config)
        named = dataset.get("metainfo", {}).get("palette")
        palette = named or DATASETS.get(dataset.type).METAINFO.get("palette", ())
        known = {"palette": palette} if len(palette) == len(classes) else {}
        self.drawing = self.make_drawing({"classes": tuple(classes), **known})
        self.images: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []

    @abstractmethod
    def make_drawing(self, metainfo: Mapping[str, Any]) -> Any:
        """What draws a picture of a prediction."""

    @abstractmethod
    def note(self, sample: Any, stem: str) -> None:
        """Keeps the numbers of a prediction for the JSON file."""

    @torch.inference_mode()
    def add(self, model: torch.nn.Module, path: Path) -> None:
        """Predicts one image; one that cannot be read, or that the pipeline cannot take, is named and left out."""
        number = len(self.images) + 1
        try:
            image = np.asarray(decode(path, orientation=self.orientation))
            item = prepare(self.pipeline, {"img_path": str(path), "img_id": number}, str(path))
        except UnreadableImage as error:
            self.skipped.append({"file_name": str(path), "reason": error.reason})
            logger.warning("skipping %s", error)
            return
        sample = model.test_step(pseudo_collate([item]))[0].cpu()
        self.images.append({"id": number, "file_name": str(path), "height": image.shape[0], "width": image.shape[1]})
        stem = f"{number:05d}_{short_stem(path)}"
        self.note(sample, stem)
        self.write(f"{stem}.png", self.drawing(image, sample, with_truth=False))

    def write(self, name: str, picture: Image.Image) -> None:
        make_folder(self.folder)
        write_then_rename(self.folder / name, lambda beside: picture.save(beside, format="png"))


class ObjectPredictions(Predictions):
    """Boxes and masks, as JSON in COCO's form with scores."""

    def __init__(
        self, config: Config, classes: Sequence[str], folder: Path, facts: Mapping[str, Any], threshold: float
    ) -> None:
        self.threshold = threshold
        super().__init__(config, classes, folder)
        self.ids, self.drawn = category_ids(config, classes, facts.get("category_ids")), 0
        self.annotations: list[dict[str, Any]] = []

    def make_drawing(self, metainfo: Mapping[str, Any]) -> ObjectDrawing:
        return ObjectDrawing(metainfo, self.threshold)

    def note(self, sample: Any, stem: str) -> None:
        found = sample.pred_instances
        self.drawn += int((found.scores > self.threshold).sum())
        masks = found.masks.numpy() if "masks" in found else [None] * len(found)
        for box, score, label, mask in zip(
            found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), masks, strict=True
        ):
            left, top, right, bottom = box
            noted = {
                "id": len(self.annotations) + 1,
                "image_id": len(self.images),
                "category_id": self.ids[label],
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "score": round(score, 5),
                "area": round((right - left) * (bottom - top), 2),
                "iscrowd": 0,
            }
            if mask is not None:
                encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
                code = {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
                noted.update(area=int(mask.sum()), segmentation=code)
            self.annotations.append(noted)

    def as_json(self) -> dict[str, Any]:
        categories = [{"id": number, "name": name} for number, name in zip(self.ids, self.classes, strict=True)]
        found = {"annotations": self.annotations, "categories": categories}
        return {"images": self.images, "skipped": self.skipped, **found}

    def summary(self) -> str:
        return f"{self.drawn} objects of at least {self.threshold:g}"


class MapPredictions(Predictions):
    """Label maps as files with the numbers that the recipe's data have: 1 … n where 0 is unlabelled there
    (``reduce_zero_label``), else 0 … n − 1; of 16 bits where 8 would not do. Shares of the classes as JSON."""

    def __init__(self, config: Config, classes: Sequence[str], folder: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(config, classes, folder)
        unopened = DATASETS.build({**config.test_dataloader.dataset, "lazy_init": True})
        self.first = int(unopened.reduce_zero_label)
        self.form = np.uint8 if len(classes) - 1 + self.first < IGNORED else np.uint16

    def make_drawing(self, metainfo: Mapping[str, Any]) -> MapDrawing:
        return MapDrawing(metainfo)

    def note(self, sample: Any, stem: str) -> None:
        labels = sample.pred_sem_seg.data[0].numpy()
        numbers, counts = np.unique(labels, return_counts=True)
        shares = {
            self.classes[number]: round(count / labels.size, 4) for number, count in zip(numbers, counts, strict=True)
        }
        self.images[-1].update(labels=f"{stem}_labels.png", shares=shares)
        self.write(f"{stem}_labels.png", Image.fromarray((labels + self.first).astype(self.form)))

    def as_json(self) -> dict[str, Any]:
        numbers = {str(number + self.first): name for number, name in enumerate(self.classes)}
        return {"images": self.images, "skipped": self.skipped, "classes": self.classes, "numbers": numbers}

    def summary(self) -> str:
        return f"{len({name for image in self.images for name in image['shares']})} classes"
