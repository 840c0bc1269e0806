"""Settings of the loop, which every task has: what they are called in each kind of recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from elsa.core import ConfigError

from .schema import SCHEMA
from .trackers import check_installed

# Name in ``run`` of a recipe of detection or segmentation → the key of classification's table, whose range it shares.
OPTIONS = {
    "log_every": "LOG.EVERY",
    "ema_decay": "TRAIN.EMA_DECAY",
    "compile": "TRAIN.COMPILE",
    "parallel": "TRAIN.PARALLEL",
    "lr_rule": "TRAIN.LR_RULE",
    "timeout": "TRAIN.TIMEOUT",
    "max_skipped": "TRAIN.MAX_SKIPPED",
    "early_stop": "TRAIN.EARLY_STOP",
    "tensorboard": "LOG.TENSORBOARD",
    "images": "LOG.IMAGES",
    "trackers": "LOG.TRACKERS",
}


@dataclass(frozen=True)
class Options:
    """Settings of the loop; their meaning is in ``SCHEMA`` under the keys of ``OPTIONS``."""

    log_every: int
    ema_decay: float | None
    compile: bool
    parallel: str
    lr_rule: str
    timeout: float
    max_skipped: int
    early_stop: int
    tensorboard: bool
    images: int
    trackers: tuple[str, ...]


def read_options(read: Callable[[str, str, Any], Any]) -> Options:
    """The options that a recipe has.

    Args:
        read: name, key of the table and default → the recipe's value.

    Raises:
        ConfigError: one that would have no effect, or whose package is missing.
    """
    options = Options(
        **{one.name: read(one.name, OPTIONS[one.name], SCHEMA[OPTIONS[one.name]].default) for one in fields(Options)}
    )
    if options.images and not options.tensorboard:
        raise ConfigError(f"run.images {options.images} has no effect unless run.tensorboard is true")
    check_installed(options.trackers)
    return options
