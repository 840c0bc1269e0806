"""The operator measured beside others: shapes, contestants, clocks, the table."""

from .contestants import CONTESTANTS
from .measure import DTYPES, Settings
from .options import OneLineParser, at_least, device, subset, thread_counts
from .report import benchmark_operator
from .shapes import DEFAULT_GROUPS, GROUPS

__all__ = [
    "CONTESTANTS",
    "DEFAULT_GROUPS",
    "DTYPES",
    "GROUPS",
    "OneLineParser",
    "Settings",
    "at_least",
    "benchmark_operator",
    "device",
    "subset",
    "thread_counts",
]
