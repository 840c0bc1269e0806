"""Exact classification metrics: counts are summed over processes, padded samples do not exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from elsa.core import DataError, UnreadableData

from .distributed import Runtime
from .precision import Precision


@dataclass(frozen=True)
class Metrics:
    """Of one evaluation.

    Attributes:
        top1, top5: per cent of the counted images (top5: of as many classes as there are, if fewer).
        loss: mean cross entropy, without smoothing.
        count: images counted; unreadable ones are not.
        bad: {name: reason} of the unreadable ones.
        predictions: on request ``(index, target, predicted, confidence)`` of each image.
    """

    top1: float
    top5: float
    loss: float
    count: int
    bad: Mapping[str, str] = field(default_factory=dict)
    predictions: list[tuple[int, int, int, float]] = field(default_factory=list, repr=False)

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
    sums = torch.zeros(3, dtype=torch.float64, device=runtime.device)
    count, skipped = 0, 0
    predictions: list[tuple[int, int, int, float]] = []
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
        sums += torch.stack([hits[:, 0].sum(), hits.sum(), losses.double().sum()]).double()
        count += len(targets)
        if keep_predictions:
            confidence = logits.softmax(1).amax(1)
            rows = (batch.indices.tolist(), targets.tolist(), best[:, 0].tolist(), confidence.tolist())
            predictions.extend(zip(*rows, strict=True))
    model.train(was_training)

    unreadable.merge(runtime.gather(unreadable.names))
    top1, top5, loss, total, left_out = runtime.sum([*sums.tolist(), count, skipped])
    if total + left_out != expected:
        raise DataError(f"evaluated {total:.0f} images and skipped {left_out:.0f}, but the data set has {expected}")
    if not total:
        raise UnreadableData(f"no image could be evaluated: all {left_out:.0f} are unreadable")
    everyone = [row for rows in runtime.gather(predictions) for row in rows] if keep_predictions else []
    return Metrics(100 * top1 / total, 100 * top5 / total, loss / total, int(total), unreadable.names, everyone)


def mistakes_first(predictions: Sequence[tuple[int, int, int, float]]) -> list[tuple[int, int, int, float]]:
    """Predictions ordered for looking at them: the most confident mistakes first, then the least confident hits."""
    return sorted(predictions, key=lambda row: (row[1] == row[2], -row[3] if row[1] != row[2] else row[3]))
