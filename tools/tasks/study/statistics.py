"""Means, and paired differences with the interval that a handful of seeds allows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

LEVEL = 0.95
VERDICTS = ("confirmed", "contradicted", "undecided")


@dataclass(frozen=True)
class Difference:
    """The mean over the seeds that both have of what one variant is above another.

    Attributes:
        low, high: Student's interval at LEVEL for the mean of such differences; infinite with one seed.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """On the claim that the one is better than the other."""
        if self.low > 0:
            return "confirmed"
        return "contradicted" if self.high < 0 else "undecided"


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Of two variants' results by seed; None without a seed that both have."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    differences = [one[seed] - other[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    if len(seeds) < 2:
        return Difference(mean, -math.inf, math.inf, 1)
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, len(seeds) - 1)) * statistics.stdev(differences) / math.sqrt(len(seeds))
    return Difference(mean, mean - half, mean + half, len(seeds))


def deviation(values: Mapping[int, float]) -> float | None:
    """Standard deviation over the seeds, of a sample; None with one."""
    return statistics.stdev(values.values()) if len(values) > 1 else None
