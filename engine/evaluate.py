"""Exact classification metrics: counts are summed over processes, padded samples do not exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from elsa.core import DataError, UnreadableData

from .distributed import Runtime
from .precision import Precision

Row = tuple[int, int, int, float]
"""(index, target, predicted, confidence) of an image"""


@dataclass(frozen=True)
class Predictions:
    """Of N images, in the order of the data set.

    Attributes:
        indices: (N,) positions in the data set; -1 in a stream, whose own order is kept.
        targets: (N,) true classes.
        classes, shares: (N, k) the k most probable classes, best first, and their probabilities; k is 5, or as many
            classes as there are.
    """

    indices: np.ndarray
    targets: np.ndarray
    classes: np.ndarray
    shares: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[tuple[np.ndarray, ...]]) -> Predictions:
        """The columns of several batches or processes, put in order."""
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return cls(*(column[order] for column in columns))

    def rows(self) -> list[Row]:
        columns = (self.indices, self.targets, self.classes[:, 0], self.shares[:, 0])
        return list(zip(*(column.tolist() for column in columns), strict=True))


@dataclass(frozen=True)
class Metrics:
    """Of one evaluation.

    Attributes:
        top1, top5: per cent of the counted images (top5: of as many classes as there are, if fewer).
        loss: mean cross entropy, without smoothing.
        count: images counted; unreadable ones are not.
        bad: {name: reason} of the unreadable ones.
        predictions: on request, of each image that counts.
    """

    top1: float
    top5: float
    loss: float
    count: int
    bad: Mapping[str, str] = field(default_factory=dict)
    predictions: Predictions | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, float]:
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss}


class Unreadable(Protocol):
    """What is told of unreadable images, by name; ``untold``: how many since the processes told each other."""

    names: Mapping[str, str]
    untold: int

    def add(self, told: Sequence[str]) -> None:
        """Notes what was said of images."""
        ...

    def too_many(self) -> bool: ...

    def merge(self, everyone: Iterable[Mapping[str, str]]) -> None:
        """Takes in what the processes met; raises UnreadableData where it is too much."""
        ...


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    expected: int,
    runtime: Runtime,
    precision: Precision,
    unreadable: Unreadable,
    keep_predictions: bool = False,
) -> Metrics:
    """Evaluates ``model`` on batches with ``images, targets, indices, bad``; all processes get the same.

    Args:
        expected: images in the whole data set; counted and unreadable ones over all processes must add up to it.
        unreadable: takes in the batches' unreadable images.

    Raises:
        UnreadableData: too many images cannot be read, or none can.
        DataError: the images do not add up.
    """
    was_training = model.training
    model.eval()
    wide = torch.float32 if runtime.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    sums = torch.zeros(3, dtype=wide, device=runtime.device)
    count, skipped = 0, 0
    kept: list[tuple[np.ndarray, ...]] = []
    for batch in batches:
        runtime.pulse()
        unreadable.add(batch.bad)
        skipped += len(batch.bad)
        if unreadable.too_many():
            break
        if not len(batch.targets):
            continue
        images = batch.images.to(runtime.device, non_blocking=True)
        targets = batch.targets.to(runtime.device, non_blocking=True)
        with precision.autocast():
            logits = model(images)
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = best == targets[:, None]
        losses = F.cross_entropy(logits, targets, reduction="none")
        sums += torch.stack([hits[:, 0].sum(), hits.sum(), losses.to(wide).sum()]).to(wide)
        count += len(targets)
        if keep_predictions:
            shares = logits.softmax(1).gather(1, best)
            kept.append(tuple(part.cpu().numpy() for part in (batch.indices, targets, best, shares)))
    model.train(was_training)

    unreadable.merge(runtime.gather(unreadable.names))
    top1, top5, loss, total, left_out = runtime.sum([*sums.tolist(), count, skipped])
    if total + left_out != expected:
        raise DataError(f"evaluated {total:.0f} images and skipped {left_out:.0f}, but the data set has {expected}")
    if not total:
        raise UnreadableData(f"no image could be evaluated: all {left_out:.0f} are unreadable")
    predictions = None
    if keep_predictions:
        predictions = Predictions.join([part for parts in runtime.gather(kept) for part in parts])
    return Metrics(100 * top1 / total, 100 * top5 / total, loss / total, int(total), unreadable.names, predictions)


def mistakes_first(predictions: Sequence[Row]) -> list[Row]:
    """Predictions ordered for looking at them: the most confident mistakes first, then the least confident hits."""
    return sorted(predictions, key=lambda row: (row[1] == row[2], -row[3] if row[1] != row[2] else row[3]))
