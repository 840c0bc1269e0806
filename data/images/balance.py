"""Classes that are not equally frequent: their weights in the loss, and an order that shows them equally often."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from elsa.core import DataError

from .readers import check_label
from .sources import Source


def class_weights(config: CfgNode, source: Source | IterableDataset) -> Tensor | None:
    """The weights of DATA.CLASS_WEIGHTS, (classes,) float32, or None for none.

    The balanced ones have the mean 1 over the training images.

    Args:
        source: the training images.

    Raises:
        DataError: balanced weights of a stream, of a reader that tells no labels, or of a class without images.
    """
    wanted = config.DATA.CLASS_WEIGHTS
    if wanted == "none":
        return None
    if wanted != "balanced":
        return torch.tensor(wanted)
    counts = np.bincount(training_labels(config, source, "CLASS_WEIGHTS"), minlength=config.MODEL.NUM_CLASSES)
    return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()


def training_labels(config: CfgNode, source: Source | IterableDataset, key: str) -> np.ndarray:
    """The class index of each training image, (N,), of which every class has some.

    Args:
        key: what of DATA is balanced, for messages.

    Raises:
        DataError: see ``class_weights``.
    """
    what = f"DATA.{key} balanced"
    if isinstance(source, IterableDataset):
        raise DataError(f"{what} needs the labels of all images, which the stream {config.DATA.DATASET} has not")
    labels = source.labels()
    if labels is None:
        raise DataError(f"{what} needs the labels of all images, which the reader {config.DATA.DATASET} does not tell")
    classes = config.MODEL.NUM_CLASSES
    for index in {int(labels.argmin()), int(labels.argmax())}:
        check_label(int(labels[index]), classes, source.name(index))
    if len(empty := np.setdiff1d(np.arange(classes), labels)):
        named = [source.classes[index] if source.classes else str(index) for index in empty[:5]]
        raise DataError(f"{what}: {len(empty)} of {classes} classes have no training image: {', '.join(named)}")
    return labels


class BalancedOrder:
    """Orders of as many entries as there are images, of every class equally many but for one.

    A class is gone through in a random order, and again in another as often as it takes. An entry is the position of an
    image, plus the number of images for each time that it has come before in the epoch: see ``TrainImages``.

    Args:
        labels: of the images, (N,); each of 0 … the highest occurs.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.total = len(labels)
        self.members = torch.from_numpy(labels.argsort(kind="stable")).split(np.bincount(labels).tolist())

    def __call__(self, generator: torch.Generator) -> Tensor:
        """The entries, (N,)."""
        each, more = divmod(self.total, len(self.members))
        wanted = torch.full((len(self.members),), each)
        wanted[torch.randperm(len(self.members), generator=generator)[:more]] += 1
        parts = []
        for members, count in zip(self.members, wanted.tolist(), strict=True):
            rounds = -(-count // len(members))
            orders = torch.rand(rounds, len(members), generator=generator, dtype=torch.double).argsort(1)
            parts.append((members[orders] + self.total * torch.arange(rounds)[:, None]).flatten()[:count])
        return torch.cat(parts)[torch.randperm(self.total, generator=generator)]
