"""Test-time augmentation: the class probabilities of several views of each image, averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

FLIPS = {"flip": -1, "flip-vertical": -2}  # the axis of (…, H, W) that is turned round


class AveragedViews(nn.Module):
    """A classifier that sees several views of an image, one after the other, and averages their probabilities.

    Args:
        model: (B, C, H, W) → logits (B, K).
        flips: of FLIPS; each doubles the views: as they are, and mirrored.

    Shapes:
        images (B, C, H, W), or (B, V, C, H, W) with V crops of each, → (B, K), the logarithm of the mean probability.
    """

    def __init__(self, model: nn.Module, flips: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.axes: list[list[int]] = [[]]
        for name in flips:
            self.axes += [[*axes, FLIPS[name]] for axes in self.axes]

    def forward(self, images: Tensor) -> Tensor:
        crops = images.unbind(1) if images.dim() == 5 else [images]
        views = [crop.flip(axes) if axes else crop for crop in crops for axes in self.axes]
        # In the logarithm no class is lost whose probability is too small for a float32.
        logs = torch.stack([self.model(view).float().log_softmax(1) for view in views])
        return logs.logsumexp(0) - math.log(len(views))
