"""Test-time augmentation averages probabilities."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elsa.engine import AveragedViews


class Slope(nn.Module):
    """Logits that tell left from right and top from bottom: sums of a (B, 1, H, W) weighted by its places."""

    def forward(self, images):
        weights = torch.arange(images[0].numel(), dtype=torch.float32).view(images.shape[1:]) / 10
        return torch.stack([(images * weights).sum((1, 2, 3)), images.sum((1, 2, 3)), -images[:, 0, 0, 0]], 1)


@pytest.fixture
def images():
    return torch.randn(5, 1, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("flips", "axes"),
    [(["flip"], [[], [3]]), (["flip-vertical"], [[], [2]]), (["flip", "flip-vertical"], [[], [3], [2], [2, 3]])],
)
def test_flips_are_averaged_as_probabilities(images, flips, axes):
    expected = torch.stack([Slope()(images.flip(turned)).softmax(1) for turned in axes]).mean(0)
    torch.testing.assert_close(AveragedViews(Slope(), flips)(images).softmax(1), expected)


def test_crops_are_averaged_each_with_its_mirror_image(images):
    crops = torch.stack([images, images.roll(1, 3), images * 0.5], 1)
    views = [crop.flip(turned) for crop in crops.unbind(1) for turned in ([], [3])]
    expected = torch.stack([Slope()(view).softmax(1) for view in views]).mean(0)
    torch.testing.assert_close(AveragedViews(Slope(), ["flip"])(crops).softmax(1), expected)


def test_a_probability_too_small_for_its_type_still_counts_in_the_loss(images):
    logits = AveragedViews(nn.Flatten(), ["flip"])(1000 * images)
    assert torch.isfinite(nn.functional.cross_entropy(logits, torch.zeros(5, dtype=torch.long)))
