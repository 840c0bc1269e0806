"""What the user wrote, and what follows from it on this machine: recipe and plan, saved side by side.

The plan is derived and printed; nothing of it is ever written back into the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .options import OPTIONS
from .schema import SCHEMA

RULES = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}  # TRAIN.LR_RULE: the power of the batch that a learning rate follows


@dataclass(frozen=True)
class Recipe:
    """What the user wrote, overrides applied; nothing that follows from the machine.

    Attributes:
        config: as its task reads it.
        file: name under which ``text`` is saved; read again it is the same recipe.
        values: all settings, flat, as plain containers.
        may_change: beginnings of the names that a resumed run may have otherwise.
    """

    config: Any
    file: str
    text: str
    values: Mapping[str, Any]
    may_change: tuple[str, ...]

    @property
    def minutes(self) -> float:
        """After so many a silent process ends the run."""
        key = OPTIONS["timeout"]
        return float(self.values.get(key, self.values.get("run.timeout", SCHEMA[key].default)))

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """What differs from the recipe that a checkpoint stores, but for what may change."""
        return [
            f"{name}: {before.get(name)!r} in the checkpoint, {self.values.get(name)!r} now"
            for name in {**before, **self.values}
            if before.get(name) != self.values.get(name) and not name.startswith(self.may_change)
        ]


@dataclass(frozen=True)
class Batch:
    """A global batch as processes share it: ``size`` = processes · accumulate · micro.

    Attributes:
        written: images per optimizer step as the recipe has them; ``size`` is another only where ``rule`` is not none.
        unit: what ``size`` had to be a multiple of; 0 where it is that of the run that is resumed.
    """

    written: int
    size: int
    processes: int
    accumulate: int
    rule: str = "none"
    unit: int = 1

    @property
    def micro(self) -> int:
        """Images that a process holds at a time."""
        return self.size // (self.processes * self.accumulate)

    @property
    def lr_factor(self) -> float:
        """What the recipe's learning rates are multiplied by."""
        return (self.size / self.written) ** RULES[self.rule]

    def adapted(self, name: str, lr: float) -> tuple[str, ...]:
        """What is done otherwise than the recipe says, in words.

        Args:
            name: of the key with the batch. lr: the recipe's learning rate.
        """
        if self.size == self.written:
            return ()
        if self.unit:
            way, step = ("down", self.unit) if self.size < self.written else ("up", -self.unit)
            why = f"rounded {way} to the nearest multiple of {self.unit} (the next one is {self.size + step})"
        else:
            why = "as the run that is resumed has it"
        root = "√" if self.rule == "sqrt" else ""
        ratio = f"{root}({self.size} / {self.written})"
        return (
            f"adapted: {name} {self.written} → {self.size} for {self.processes} processes, {why}; learning rates × "
            f"{ratio} = {self.lr_factor:.6g}: {lr:g} → {lr * self.lr_factor:.6g}",
        )


def divisions(
    written: int,
    processes: int,
    accumulate: int | None,
    rule: str = "none",
    *,
    pairs: bool = False,
    groups: int = 1,
    kept: int | None = None,
) -> Iterator[Batch]:
    """The ways in which processes can share a global batch, the fewest micro-batches first; none where there is none.

    With a ``rule``, a batch that cannot be shared becomes the nearest that can, the smaller of two.

    Args:
        written: the recipe's batch. accumulate: the recipe's micro-batches, or None for any.
        pairs: whether the images of a micro-batch are paired, so that their number must be even.
        groups: what the batch must be a multiple of, too.
        kept: the batch of the run that is resumed, which stays as it is.
    """
    size, even = written if kept is None else kept, 2 if pairs else 1
    counts = range(1, size // processes + 1) if accumulate is None else (accumulate,)

    def fits(count: int) -> bool:
        return size >= processes * count * even and size % math.lcm(processes * count * even, groups) == 0

    fixed = kept is not None or rule == "none" or fits(accumulate or 1)
    for count in counts or (1,):
        unit = math.lcm(processes * count * even, groups)
        if fits(count):
            yield Batch(written, size, processes, count, rule, unit if kept is None else 0)
        elif not fixed:
            down = size // unit * unit
            nearest = down if down and size - down <= down + unit - size else down + unit
            yield Batch(written, nearest, processes, count, rule, unit)


@dataclass(frozen=True)
class Plan:
    """The numbers that a training runs by.

    Attributes:
        global_batch: images per optimizer step = processes · accumulate · micro_batch.
        evaluate_every: steps between evaluations; there is one at the end in any case.
        save_every: steps between saves beside those at the end of an epoch and around evaluations; 0 for none.
        lr: the learning rate, which belongs to the global batch: the recipe's, unless ``adapted`` says otherwise.
        adapted: what of the recipe this machine does otherwise, and why.
        memory: the estimate of what a process needs of its device (``memory.Memory.as_dict``); None on a CPU.
        estimate: the same in words, or why there is none.
    """

    seed: int
    device: str
    precision: str
    processes: int
    global_batch: int
    accumulate: int
    micro_batch: int
    lr: float
    train_images: int
    val_images: int
    steps_per_epoch: int
    total_steps: int
    evaluate_every: int
    save_every: int
    log_every: int
    adapted: tuple[str, ...] = ()
    memory: Mapping[str, Any] | None = None
    estimate: str = ""

    @property
    def epochs(self) -> int:
        """Epochs that are begun."""
        return -(-self.total_steps // self.steps_per_epoch)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "adapted": list(self.adapted), "epochs": self.epochs}

    def lines(self) -> Iterator[str]:
        """The plan for people."""
        yield from self.adapted
        yield (
            f"global batch {self.global_batch} = {self.processes} processes × {self.accumulate} accumulated × "
            f"{self.micro_batch} images; learning rate {self.lr:g} is for the global batch"
        )
        if self.estimate:
            yield self.estimate
        yield (
            f"{self.total_steps} steps, {self.steps_per_epoch} an epoch; {self.train_images} training and "
            f"{self.val_images} validation images"
        )
