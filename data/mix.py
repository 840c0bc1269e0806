"""Mixup and cutmix as AUG says."""

from __future__ import annotations

from timm.data import Mixup
from yacs.config import CfgNode

from .sources import DataError


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
