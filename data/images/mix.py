"""Mixup and cutmix as AUG says, mix-token as TOKENS says."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor
from yacs.config import CfgNode

from elsa.core import DataError


def build_mix(config: CfgNode, batch: int) -> Mixup | None:
    """timm's Mixup for micro-batches of ``batch`` images, or None where neither mixup nor cutmix is on.

    It turns class indices into class probabilities, label smoothing included.

    Raises:
        DataError: an odd batch, whose images cannot be paired.
    """
    aug = config.AUG
    if not aug.MIX_PROB or not (aug.MIXUP or aug.CUTMIX):
        return None
    if batch % 2:
        raise DataError(f"mixup and cutmix pair the images of a batch, but each process holds {batch}: use an even one")
    return Mixup(
        mixup_alpha=aug.MIXUP,
        cutmix_alpha=aug.CUTMIX,
        prob=aug.MIX_PROB,
        switch_prob=aug.MIX_SWITCH,
        label_smoothing=aug.SMOOTHING,
        num_classes=config.MODEL.NUM_CLASSES,
    )


def build_mix_token(config: CfgNode, batch: int, grid: tuple[int, int]) -> Callable[[], Tensor] | None:
    """What draws the box of mix-token for a micro-batch of ``batch`` images, or None where TOKENS.MIX is 0.

    Raises:
        DataError: an odd batch, whose images cannot be paired.
    """
    if not config.TOKENS.MIX:
        return None
    if batch % 2:
        raise DataError(f"mix-token pairs the images of a batch, but each process holds {batch}: use an even one")
    return functools.partial(draw_box, grid, config.TOKENS.MIX)


def draw_box(grid: tuple[int, int], alpha: float) -> Tensor:
    """A random (top, left, bottom, right) in tokens, (4,) integers, cut off at the border.

    Before that its share of the ``grid`` (rows, columns) is 1 − λ, λ ~ Beta(α, α), its centre anywhere.
    """
    side = np.sqrt(1 - np.random.beta(alpha, alpha))
    begins, ends = [], []
    for size in grid:
        centre, length = np.random.randint(size), int(size * side)
        begins.append(max(centre - length // 2, 0))
        ends.append(min(centre + (length + 1) // 2, size))
    return torch.tensor(begins + ends)
