"""Metrics are exact, whatever the batches are like."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from elsa.core import DataError
from elsa.data import BadImages
from elsa.engine import Precision, Predictions, Runtime, calibrate, count_classes, evaluate, mistakes_first

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


def told(targets, predicted, shares, classes):
    """Predictions of which the first class counts."""
    columns = (np.array(targets), np.array(predicted)[:, None], np.array(shares, np.float32)[:, None])
    found = Predictions(np.arange(len(targets)), *columns)
    return count_classes(found, classes), calibrate(found)


def test_predictions_are_in_the_order_of_the_data_set_with_the_best_five():
    logits = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    parts = list(batches(logits, torch.arange(9) % 7, 4))
    metrics = evaluate(nn.Identity(), parts[::-1], 9, ALONE, FLOAT32, BadImages(1, "MAX_BAD"), keep_predictions=True)
    found = metrics.predictions
    assert found.indices.tolist() == list(range(9))
    shares, classes = logits.softmax(1).topk(5)
    assert (found.classes == classes.numpy()).all()
    assert found.shares == pytest.approx(shares.numpy())
    assert found.rows()[3] == (3, 3, int(classes[3, 0]), pytest.approx(float(shares[3, 0])))


def test_the_confusion_matrix_is_that_of_plain_counting():
    counts, _ = told([0, 0, 0, 1, 1, 3], [0, 2, 2, 1, 0, 3], [0.5] * 6, 4)
    assert counts.matrix.tolist() == [[1, 0, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert counts.images.tolist() == [3, 2, 0, 1]
    assert counts.accuracy[[0, 1, 3]] == pytest.approx([100 / 3, 50, 100])
    assert np.isnan(counts.accuracy[2])
    assert counts.mistakes.tolist() == [[0, 2, 2], [1, 0, 1]]


def test_calibration_is_that_of_the_definition():
    """Guo et al. 2017, equations 2 to 5: bins of (m − 1)/15 < p ≤ m/15."""
    shares = [0.31, 0.33, 0.62, 0.64, 0.66, 1.0]
    _, found = told([0] * 6, [1, 0, 0, 0, 1, 0], shares, 2)
    assert np.flatnonzero(found.images).tolist() == [4, 9, 14]
    assert found.images[[4, 9, 14]].tolist() == [2, 3, 1]
    assert found.confidence[[4, 9, 14]] == pytest.approx([0.32, 0.64, 1.0])
    assert found.accuracy[[4, 9, 14]] == pytest.approx([1 / 2, 2 / 3, 1])
    assert found.ece == pytest.approx((2 * 0.18 + 3 * (2 / 3 - 0.64)) / 6)


@pytest.mark.parametrize(("share", "place"), [(0.0, 0), (1 / 15, 0), (0.2, 2), (0.2001, 3), (1.0, 14)])
def test_a_probability_at_an_edge_is_in_the_lower_bin(share, place):
    found = Predictions(np.arange(1), np.zeros(1, int), np.zeros((1, 1), int), np.array([[share]]))
    assert np.flatnonzero(calibrate(found).images).tolist() == [place]
