"""What recipes of detection and segmentation share: backbone, sizes, schedule."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from elsa.core import ConfigError, did_you_mean
from elsa.models import VARIANTS

from .proposal import has_gpu, middle, to_32

SMALLEST, LONGEST = 128, 1333  # pixels of the short and of the long side
WARM_UP = 500  # steps


def backbone_of(args: argparse.Namespace) -> str:
    """
    Raises:
        ConfigError: there is none of that name.
    """
    if args.model is None:
        return "elsa_swin_tiny" if has_gpu() or args.weights else "elsa_swin_nano"
    if args.model not in VARIANTS:
        near = did_you_mean(args.model, VARIANTS) or f"; there are {', '.join(VARIANTS)}"
        raise ConfigError(f"--model {args.model!r} is no backbone{near}")
    return args.model


def weights_line(args: argparse.Namespace, variant: str) -> str:
    """Arguments of the backbone."""
    return f"variant={variant!r}, pretrained={str(args.weights) if args.weights else None!r}"


def sides(sizes: Sequence[tuple[int, int]], most: int) -> tuple[int, int]:
    """The short and the long side, in pixels, that images are brought to: their own, within bounds."""
    short = min(most, max(SMALLEST, to_32(middle(min(size) for size in sizes))))
    ratio = sorted(max(size) / min(size) for size in sizes)[int(0.95 * (len(sizes) - 1))]
    return short, min(LONGEST, to_32(short * min(ratio, 3.0)))


def milestones(epochs: int) -> list[int]:
    """At two thirds and at eleven twelfths, as in the published schedules."""
    return [max(1, epochs * 2 // 3), max(2, epochs * 11 // 12)]


def warm_up(steps: int) -> int:
    return max(1, min(WARM_UP, steps // 10))
