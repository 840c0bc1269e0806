"""Cross entropy with weights of the classes: its definition, for indices and for mixed targets alike."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from elsa.engine import WeightedCrossEntropy

WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


@pytest.fixture
def logits():
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_over_images_of_weighted_sums_over_classes(logits, smoothing):
    indices = torch.tensor([0, 1, 2, 2, 1, 0])
    probabilities = F.one_hot(indices, 3).double()
    mixed = 0.3 * probabilities + 0.7 * probabilities.flip(0)
    criterion = WeightedCrossEntropy(WEIGHTS.double(), smoothing)
    for target, given in ((probabilities, indices), (probabilities, probabilities), (mixed, mixed)):
        smoothed = (1 - smoothing) * target + smoothing / 3
        expected = -(WEIGHTS * smoothed * logits.log_softmax(1)).sum(1).mean()
        assert criterion(logits, given).item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts(logits):
    """So that neither processes nor accumulated micro-batches change the gradient."""
    indices = torch.tensor([0, 0, 0, 2, 2, 2])
    criterion = WeightedCrossEntropy(WEIGHTS.double())
    parts = [criterion(logits[part], indices[part]) for part in (slice(0, 3), slice(3, 6))]
    assert criterion(logits, indices).item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-12)


def test_equal_weights_are_the_plain_loss(logits):
    indices = torch.tensor([0, 1, 2, 2, 1, 0])
    weighted = WeightedCrossEntropy(torch.ones(3).double(), 0.1)(logits, indices)
    assert weighted.item() == pytest.approx(F.cross_entropy(logits, indices, label_smoothing=0.1).item(), rel=1e-12)
