"""Class-weighted cross entropy of segmentors, with unlabelled pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from elsa.models.mm.loss import ClassWeightedLoss

WEIGHTS = [1.0, 0.5, 2.0, 0.1]


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 7, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (2, 5, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.4] = 255
    return logits, labels


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_it_is_the_weighted_mean_over_labelled_pixels(example, weights):
    logits, labels = example
    loss = MODELS.build(dict(type="ClassWeightedLoss", class_weight=weights, loss_weight=0.4))
    table = None if weights is None else torch.tensor(weights)
    wanted = 0.4 * F.cross_entropy(logits, labels, table, ignore_index=255)
    found = loss(logits, labels)
    torch.testing.assert_close(found, wanted)
    gradient, reference = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (found, wanted))
    torch.testing.assert_close(gradient, reference)
    assert not list(loss.state_dict()), "weights of the loss are no part of a checkpoint"


def test_pixel_weights_of_a_sampler_count_too(example):
    logits, labels = example
    kept = torch.zeros(labels.shape)
    kept[:, :2] = 1
    loss = ClassWeightedLoss(WEIGHTS)
    torch.testing.assert_close(loss(logits, labels, weight=kept), loss(logits[:, :, :2], labels[:, :2]))


def test_no_labelled_pixel_is_a_loss_of_zero(example):
    logits, labels = example
    loss = ClassWeightedLoss(WEIGHTS)(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_impossible_weights_are_refused(example):
    with pytest.raises(ValueError, match="3 weights, the head 4 classes"):
        ClassWeightedLoss([1, 1, 1])(*example)
    for weights in ([1, -1], [0, 0], []):
        with pytest.raises(ValueError, match="class_weight must be"):
            ClassWeightedLoss(weights)
