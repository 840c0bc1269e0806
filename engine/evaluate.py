"""Exact classification metrics: counts are summed over processes, padded samples do not exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .distributed import Runtime
from .precision import Precision


@dataclass(frozen=True)
class Metrics:
    """Of one evaluation.

    Attributes:
        top1, top5: per cent of the counted images (top5: of as many classes as there are, if fewer).
        loss: mean cross entropy, without smoothing.
        count: images counted; unreadable ones are not.
        bad: names of the unreadable ones that this process met.
        predictions: on request ``(index, target, predicted, confidence)`` of this process's images.
    """

    top1: float
    top5: float
    loss: float
    count: int
    bad: tuple[str, ...] = ()
    predictions: list[tuple[int, int, int, float]] = field(default_factory=list, repr=False)

    def as_dict(self) -> dict[str, float]:
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    expected: int,
    runtime: Runtime,
    precision: Precision,
    keep_predictions: bool = False,
) -> Metrics:
    """Evaluates ``model`` on batches with ``images, targets, indices, bad``.

    Args:
        expected: images in the whole data set; counted and unreadable ones over all processes must add up to it.

    Raises:
        RuntimeError: they do not.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=runtime.device)
    count, bad = 0, []
    predictions: list[tuple[int, int, int, float]] = []
    for batch in batches:
        bad.extend(batch.bad)
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

    top1, top5, loss, total, skipped = runtime.sum([*sums.tolist(), count, len(bad)])
    if total + skipped != expected:
        raise RuntimeError(f"evaluated {total:.0f} images and skipped {skipped:.0f}, but the data set has {expected}")
    if not total:
        raise RuntimeError("no image could be evaluated")
    return Metrics(100 * top1 / total, 100 * top5 / total, loss / total, int(total), tuple(bad), predictions)


def mistakes_first(predictions: Sequence[tuple[int, int, int, float]]) -> list[tuple[int, int, int, float]]:
    """Predictions ordered for looking at them: the most confident mistakes first, then the least confident hits."""
    return sorted(predictions, key=lambda row: (row[1] == row[2], -row[3] if row[1] != row[2] else row[3]))
