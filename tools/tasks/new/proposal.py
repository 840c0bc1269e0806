"""What all tasks share: what is proposed, and the numbers that follow from the data and the machine."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from elsa.core import DataError
from elsa.data.checks.report import look_at
from elsa.data.survey import survey

from ..data_check import show_progress

LOOK_AT = 1000  # images, or label maps
MOST_BAD = 10  # images that cannot be read, DATA.MAX_BAD as it is unless a recipe says otherwise
HELD_OUT, SEED = 0.2, 0  # of a set that is not divided
STEPS = 20  # of an epoch, at least


@dataclass
class Proposal:
    """A recipe.

    Attributes:
        text: of the file; files: what it names and is written beside it.
        told: what was found and chosen, in lines.
    """

    text: str
    files: dict[Path, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Length:
    """Epochs for so many images, by experience."""

    below: float
    fresh: int
    tuned: int


# Images → epochs of a network with fresh weights, and of one that starts from weights.
LENGTHS = (Length(1000, 100, 50), Length(20_000, 100, 30), Length(200_000, 200, 30), Length(math.inf, 300, 20))


def has_gpu() -> bool:
    return torch.cuda.is_available()


def workers() -> int:
    """Loader processes for a training process here; none where there are no cores to spare."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores <= 2 else min(8, cores // max(1, torch.cuda.device_count()) - 1)


def batch_for(images: int, most: int) -> int:
    """The largest power of two, up to ``most``, of which an epoch has some steps; two, if there are so few images."""
    wanted = min(most, max(images // STEPS, min(8, images)))
    return 1 << max(wanted, 2).bit_length() - 1


def scaled(rate: float, reference: int, batch: int) -> float:
    """A learning rate for a batch, by the root of its ratio to the one that the rate is known for, as fits Adam."""
    return float(f"{rate * math.sqrt(batch / reference):.2g}")


def why_rate(lr: float, rate: float, reference: int, batch: int, origin: str) -> str:
    return (
        f"learning rate {lr:g} for a batch of {batch}: {rate:g} for {reference} ({origin}) × √({batch} / {reference})"
    )


def epochs_for(images: int, tuned: bool) -> int:
    length = next(length for length in LENGTHS if images < length.below)
    return length.tuned if tuned else length.fresh


def spread(items: Sequence[str], most: int = LOOK_AT) -> Sequence[str]:
    return items[:: max(1, -(-len(items) // most))]


def sizes_of(paths: Sequence[str]) -> tuple[list[tuple[int, int]], list[str]]:
    """(width, height) of images spread over a set, and a line where some cannot be read.

    Raises:
        DataError: none can be read, or more than a training passes over.
    """
    looked = spread(paths)
    looks = survey(partial(look_at, decode=True), looked, workers(), show_progress, "looking at images")
    found, bad = [], []
    for path, look in looks:
        if look.size:
            found.append(look.size)
        else:
            bad.append(f"{path} ({look.error})")
    if bad and (not found or len(bad) > MOST_BAD):
        raise DataError(f"{len(bad)} of {len(looked)} images looked at cannot be read: {'; '.join(bad[:3])}")
    return found, [f"{len(bad)} of {len(looked)} images looked at cannot be read: {'; '.join(bad[:3])}"] if bad else []


def middle(values: Iterable[int]) -> int:
    """The median."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def to_32(side: float) -> int:
    """The next multiple of 32, which every stage of our networks divides."""
    return 32 * max(1, math.ceil(side / 32))


def held_out(items: Sequence[str], least: int = 1) -> tuple[list[str], list[str]]:
    """Those to train on and those to validate on, the same for the same items, each in their order.

    Args:
        least: of each, where there are so many.
    """
    drawn = sorted(items)
    random.Random(f"{SEED} {len(drawn)} {drawn[0]}").shuffle(drawn)
    count = max(least, round(HELD_OUT * len(drawn)))
    chosen = set(drawn[:count])
    return [item for item in items if item not in chosen], [item for item in items if item in chosen]


def commented(lines: Iterable[str], width: int = 116) -> Iterator[str]:
    """Comment lines of at most that width."""
    for line in lines:
        row = "#"
        for word in line.split():
            if len(row) + len(word) >= width and row != "#":
                yield row
                row = "#"
            row += f" {word}"
        yield row
