"""Metrics are exact, whatever the batches are like."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from elsa.core import DataError
from elsa.data import BadImages
from elsa.engine import Precision, Runtime, evaluate, mistakes_first

ALONE = Runtime(0, 1, torch.device("cpu"))
FLOAT32 = Precision("cpu", None)


def measure(model, batches, expected):
    return evaluate(model, batches, expected, ALONE, FLOAT32, BadImages(1, "MAX_BAD"))


def batches(images, targets, size, bad=()):
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        yield SimpleNamespace(images=images[part], targets=targets[part], indices=torch.arange(len(targets))[part],
                              bad=bad if start == 0 else ())  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("classes", [3, 10])
def test_against_plain_counting(size, classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(50, classes, generator=generator)
    targets = torch.randint(0, classes, (50,), generator=generator)
    metrics = measure(nn.Identity(), batches(logits, targets, size), 50)
    order = [sorted(range(classes), key=lambda c, row=row: -row[c]) for row in logits.tolist()]
    hits1 = sum(row[0] == target for row, target in zip(order, targets.tolist(), strict=True))
    hits5 = sum(target in row[:5] for row, target in zip(order, targets.tolist(), strict=True))
    assert metrics.count == 50
    assert (metrics.top1, metrics.top5) == (100 * hits1 / 50, 100 * hits5 / 50)
    assert metrics.loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)


def test_unreadable_images_are_left_out_of_the_count():
    logits, targets = torch.eye(4), torch.arange(4)
    metrics = measure(nn.Identity(), batches(logits, targets, 4, bad=("a.png cannot be read: cut",)), 5)
    assert (metrics.count, metrics.bad, metrics.top1) == (4, {"a.png": "cut"}, 100.0)


def test_too_many_unreadable_images_end_an_evaluation_with_their_reasons():
    bad = ("a.png cannot be read: cut", "b.png cannot be read: empty")
    with pytest.raises(DataError, match=r"2 images cannot be read \(MAX_BAD is 1\): a\.png \(cut\), b\.png \(empty\)"):
        measure(nn.Identity(), batches(torch.eye(4), torch.arange(4), 4, bad=bad), 6)


def test_a_lost_image_is_an_error():
    with pytest.raises(DataError, match="evaluated 4 images and skipped 0, but the data set has 5"):
        measure(nn.Identity(), batches(torch.eye(4), torch.arange(4), 4), 5)


def test_the_mode_of_the_model_is_restored():
    model = nn.Dropout(0.5).train()
    measure(model, batches(torch.eye(4), torch.arange(4), 2), 4)
    assert model.training


def test_mistakes_come_first_the_most_confident_ones_leading():
    rows = [(0, 1, 1, 0.9), (1, 1, 2, 0.6), (2, 0, 0, 0.5), (3, 2, 0, 0.8)]
    assert [row[0] for row in mistakes_first(rows)] == [3, 1, 2, 0]
