"""What TensorBoard shows beside the numbers of a classifier: a batch as the model gets it, and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from elsa.core import logger
from elsa.data import Batch, Source, UnreadableImage, eval_transform
from elsa.engine import Precision, Step, TokenLabelStep, TrainStep, monitor

from .pictures import NAME, as_image, class_text, denormalised, grid, plain, verdict

COLUMNS, CELL = 8, (1.6, 2.0)
SHARE = 0.05  # of a class in a mixed target that is worth its name


def mixed_text(names: Sequence[str], target: Tensor, between: str = "\n") -> str:
    """The classes that most of a mixed target (C,) is of, with their shares."""
    shares, indices = target.topk(min(2, len(target)))
    found = zip(shares.tolist(), indices.tolist(), strict=True)
    return between.join(class_text(names[index], share) for share, index in found if share > SHARE)


def exchanged(images: Tensor, box: Tensor) -> Tensor:
    """Images (B, C, H, W) that within a box (top, left, bottom, right) are those of their mirrors in the batch."""
    top, left, bottom, right = box.tolist()
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed


class Gallery(monitor.Gallery, Protocol):
    """Draws batches, and predictions as well."""

    def predictions(self, model: nn.Module) -> np.ndarray | None:
        """Images of the evaluation that has just been, as ``batch`` gives them; None where there is nothing to show."""
        ...


class ClassifierGallery:
    """Batches with mixing and class names, and images of the validation split, spread over it, with their predictions.

    Args:
        count: images of each picture.
        source: of the validation split; a stream, which has no access by index, shows no predictions.
    """

    def __init__(
        self, config: CfgNode, source: Source | IterableDataset, classes: Sequence[str], precision: Precision
    ) -> None:
        self.config, self.count, self.precision = config, config.LOG.IMAGES, precision
        self.names = list(classes) or [str(number) for number in range(config.MODEL.NUM_CLASSES)]
        self.chosen: list[tuple[Image.Image, Tensor, int]] = []
        if isinstance(source, IterableDataset):
            logger.info("LOG.IMAGES shows batches alone: a stream has no access to images by their numbers")
            return
        transform = eval_transform(config)
        for index in np.linspace(0, len(source) - 1, min(self.count, len(source))).round():
            try:
                image, target = source.load(int(index))
            except UnreadableImage:  # the evaluation tells of it
                continue
            self.chosen.append((image, transform(image), target))

    def batch(self, step: Step, batch: Batch) -> np.ndarray:
        assert isinstance(step, TrainStep)
        images, texts = self._mixed(step, batch)
        cells = [(self._pixels(image), text, "black") for image, text in zip(images[: self.count], texts, strict=False)]
        return np.asarray(as_image(grid(cells, "", columns=COLUMNS, cell=CELL)))

    def _mixed(self, step: TrainStep, batch: Batch) -> tuple[Tensor, list[str]]:
        """The images and what they show, after mixup, cutmix or mix-token (of which the exchanged pixels are those that
        the exchanged tokens are made of)."""
        names = [plain(self.names[target], NAME) for target in batch.targets.tolist()]
        if isinstance(step, TokenLabelStep):
            if step.draw_box is None:
                return batch.images, names
            images = exchanged(batch.images, step.draw_box() * step.source.token_stride)
            pairs = zip(names, reversed(names), strict=True)
            return images, [f"{name}\n{other} in the box" for name, other in pairs]
        if step.mix is None:
            return batch.images, names
        images, targets = step.mix(batch.images.clone(), batch.targets)
        return images, [mixed_text(self.names, row) for row in targets]

    def _pixels(self, image: Tensor) -> Image.Image:
        return denormalised(image, self.config.DATA.MEAN, self.config.DATA.STD)

    @torch.no_grad()
    def predictions(self, model: nn.Module) -> np.ndarray | None:
        if not self.chosen:
            return None
        was_training = model.training
        device = next(model.parameters()).device
        model.eval()
        with self.precision.autocast():
            logits = model(torch.stack([pixels for _, pixels, _ in self.chosen]).to(device))
        model.train(was_training)
        cells = []
        for (image, _, target), row in zip(self.chosen, logits.float().softmax(1).cpu(), strict=True):
            share, predicted = row.max(0)
            cells.append((image, *verdict(self.names, target, int(predicted), float(share))))
        return np.asarray(as_image(grid(cells, "", columns=COLUMNS, cell=CELL)))
