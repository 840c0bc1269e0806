"""How a recipe's global batch is shared by processes, with an estimate of their memory: here and on other machines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from elsa.core import ConfigError
from elsa.data import divide_batch
from elsa.engine import Batch, Runtime, divisions
from elsa.engine.memory import GIB, Forward, Memory, estimate, measure, optimizer_state, usable_memory
from elsa.kernels import backend_info

# Optimizers that need a GPU → those that keep the same for each number.
ALIKE = {"apex_fused_adam": "adamw", "apex_fused_lamb": "lamb"}
CUT = 300  # characters of what is said of an estimate that cannot be made


@dataclass(frozen=True)
class Wish:
    """What a recipe says of its batch.

    Attributes:
        batch: images per optimizer step; accumulate: micro-batches, None to be derived; rule: TRAIN.LR_RULE.
        lr: the learning rate for that batch.
        names: the keys of batch, accumulation and rule.
        cures: what a recipe of this task can do where memory does not suffice.
        pairs, groups, kept: see ``divisions``.
    """

    batch: int
    accumulate: int | None
    rule: str
    lr: float
    names: tuple[str, str, str]
    cures: tuple[str, ...] = ()
    pairs: bool = False
    groups: int = 1
    kept: int | None = None

    def divisions(self, processes: int) -> Iterator[Batch]:
        """The ways to share it, the fewest micro-batches first.

        Raises:
            DataError, ConfigError: there is none; the message has the keys' names.
        """
        options = dict(pairs=self.pairs, groups=self.groups, kept=self.kept)
        ways = divisions(self.batch, processes, self.accumulate, self.rule, **options)
        first = next(ways, None)
        if first is None:
            name, rule, size = self.names[0], self.names[2], self.batch
            if self.kept is not None:
                name = f"a run that is resumed keeps its global batch: {name}"
                rule, size = "", self.kept
            divide_batch(size, processes, self.accumulate, name, self.names[1], rule, self.pairs)
            raise ConfigError(f"{name} {size} is no multiple of train_dataloader.aspect_group {self.groups}")
        return itertools.chain([first], ways)


@dataclass(frozen=True)
class Settled:
    """A batch as it is shared, and the estimate that it follows from.

    Attributes:
        adapted: lines of what the recipe does not say so.
        memory: None where nothing was estimated; told: the estimate in words, or why there is none.
    """

    batch: Batch
    adapted: tuple[str, ...]
    memory: Memory | None
    usable: float | None
    told: str

    def as_dict(self) -> dict[str, Any] | None:
        return None if self.memory is None else self.memory.as_dict(self.batch.micro, self.usable)


def settle(wish: Wish, processes: int, usable: float | None, measured: Callable[[], Memory]) -> Settled:
    """The fewest micro-batches that fit, as far as they are not given.

    Args:
        usable: bytes that a process has; None where there is no need to ask.
        measured: makes the estimate.
    """
    ways = list(wish.divisions(processes))
    memory, told, lines = None, "", []
    if usable is not None:
        try:
            memory = measured()
        except Exception as error:  # a model may do with shapes what only numbers can tell
            told = f"memory is not estimated ({type(error).__name__}: {' '.join(str(error).split())[:CUT]})"
    if memory is None:
        batch = ways[0]
    else:
        fitting = [way for way in ways if memory.total(way.micro) <= usable]
        batch = fitting[0] if fitting else ways[-1]
        told = memory.line(batch.micro, usable)
        if not fitting:
            cures = " or ".join(_cures(wish, batch))
            lines.append(f"by the estimate {batch.micro} images at a time do not fit: {cures}")
        elif wish.accumulate is None and batch.accumulate > 1:
            first = ways[0]
            lines.append(
                f"adapted: {batch.accumulate} micro-batches of {batch.micro} images, the fewest that fit; "
                f"{first.micro} images at a time need {memory.total(first.micro) / GIB:.1f} GiB"
            )
    return Settled(batch, (*batch.adapted(wish.names[0], wish.lr), *lines), memory, usable, told)


def _cures(wish: Wish, batch: Batch) -> list[str]:
    more = [f"more accumulation ({wish.names[1]}: null derives it)"] if wish.accumulate and batch.micro > 1 else []
    return [*more, *wish.cures] or ["a smaller model or image"]


def settle_here(wish: Wish, runtime: Runtime, measured: Callable[[], Memory]) -> Settled:
    """``settle`` for the processes of this run: the smallest GPU counts, and all have what the main process finds."""
    found = runtime.gather(usable_memory(runtime.device))
    usable = None if None in found else min(found)
    return runtime.gather(settle(wish, runtime.world_size, usable, measured) if runtime.is_main else None)[0]


def estimated(
    model: nn.Module,
    forward: Forward,
    build: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    device: str,
    dtype: torch.dtype | None,
    recompute: Callable[[nn.Module, bool], Any] | None,
    average: bool,
    processes: int,
    parallel: str,
    notes: tuple[str, ...] = (),
) -> Memory:
    """The estimate for one process.

    Args:
        build: makes the recipe's optimizer for a model.
        device, dtype, recompute: see ``measure``.
        parallel: TRAIN.PARALLEL.
    """
    kernels = backend_info()[device]
    if any(type(module).__name__.startswith("ELSA") for module in model.modules()) and not _has_kernels(kernels):
        notes = (*notes, "ELSA's kernels for this device are not compiled here: its reference needs more")
    activations = measure(model, forward, device, dtype, recompute)
    sharded = parallel == "fsdp"
    state = optimizer_state(build)
    return estimate(model, activations, state, average=average, processes=processes, sharded=sharded, notes=notes)


def _has_kernels(said: str) -> bool:
    return said == "available" or "torch sees no GPU" in said
