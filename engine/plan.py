"""What follows from a recipe and this machine: derived, printed, and saved beside the recipe; never written into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


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
