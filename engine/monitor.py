"""What a run tells of its steps: means since the last line, pace, waiting, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .distributed import Runtime
from .logbook import Logbook, peak_memory_gb
from .plan import Plan
from .step import StepRecord, TrainState


class Monitor:
    """Counts what happens between two log lines, and writes them."""

    def __init__(self, plan: Plan, runtime: Runtime, state: TrainState, logbook: Logbook) -> None:
        self.plan, self.runtime, self.state, self.logbook = plan, runtime, state, logbook
        self.restart()

    def restart(self) -> None:
        """Begins to count afresh: after a line, and after what is no training."""
        self.images, self.waited = 0, 0.0
        self.losses: list[dict[str, torch.Tensor]] = []
        self.since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for data."""
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked

    def count(self, record: StepRecord) -> None:
        self.images += record.images
        self.losses.append({"loss": record.loss, **record.terms})
        self.logbook.advance()

    def write(self, record: StepRecord, step_in_epoch: int) -> None:
        """The mean over the steps since the last line."""
        state, plan = self.state, self.plan
        names = self.runtime.shared([name for name in self.losses[0] if all(name in losses for losses in self.losses)])
        mine = torch.stack([torch.stack([losses[name] for name in names]) for losses in self.losses]).double()
        sums = torch.tensor(self.runtime.sum(mine.flatten().tolist()), dtype=torch.float64)
        table = sums.view(mine.shape) / self.runtime.world_size  # (steps, names)
        means = dict(zip(names, table.mean(0).tolist(), strict=True))
        for loss in table[:, names.index("loss")].tolist():  # one by one: the same sum wherever a run was interrupted
            state.loss_sum += loss
        state.loss_steps += len(table)
        elapsed = time.perf_counter() - self.since
        numbers = {
            "epoch": state.step / plan.steps_per_epoch,
            **means,
            "lr": record.lr,
            "grad_norm": record.grad_norm.item(),
            "images_per_s": self.images * self.runtime.world_size / elapsed,
            "data_wait": self.waited / elapsed,
            "memory_gb": peak_memory_gb(self.runtime.device),
        }
        terms = " ".join(f"{name.removeprefix('loss_')} {means[name]:.3f}" for name in names if name != "loss")
        where = f"epoch {(state.step - 1) // plan.steps_per_epoch + 1}/{plan.epochs} "
        where += f"step {step_in_epoch}/{plan.steps_per_epoch} "
        text = (
            f"loss {means['loss']:.4f} {f'({terms}) ' if terms else ''}lr {record.lr:.2e} "
            f"{numbers['images_per_s']:.3g} img/s data wait {numbers['data_wait']:.0%} "
            f"{numbers['memory_gb']:.1f} GB ETA {self.logbook.eta(state.step)}"
        )
        self.logbook.write("train", state.step, text, where, **numbers)
        self.restart()
