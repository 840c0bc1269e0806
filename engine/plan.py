"""What the user wrote, and what follows from it on this machine: recipe and plan, saved side by side.

The plan is derived and printed; nothing of it is ever written back into the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any


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

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """What differs from the recipe that a checkpoint stores, but for what may change."""
        return [
            f"{name}: {before.get(name)!r} in the checkpoint, {self.values.get(name)!r} now"
            for name in {**before, **self.values}
            if before.get(name) != self.values.get(name) and not name.startswith(self.may_change)
        ]


@dataclass(frozen=True)
class Plan:
    """The numbers that a training runs by.

    Attributes:
        global_batch: images per optimizer step = processes · accumulate · micro_batch.
        evaluate_every: steps between evaluations; there is one at the end in any case.
        save_every: steps between saves beside those at the end of an epoch and around evaluations; 0 for none.
        lr: the recipe's learning rate, which belongs to the global batch.
        adapted: what of the recipe this machine does otherwise, and why.
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
        yield (
            f"{self.total_steps} steps, {self.steps_per_epoch} an epoch; {self.train_images} training and "
            f"{self.val_images} validation images"
        )
