"""The training loop: epochs of steps, evaluation, checkpoints, and a clean end whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.scheduler.scheduler import Scheduler
from yacs.config import CfgNode

from .checkpoint import LAST, save_checkpoint
from .config import plain
from .evaluate import Metrics
from .logbook import Logbook, peak_memory_gb
from .runtime import Runtime, StopRequest, logger, seed_everything
from .step import StepRecord, TrainState, TrainStep


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stood and what can be used."""


class TrainBatches(Protocol):
    """What ``fit`` needs of the training data."""

    steps_per_epoch: int

    def epoch(self, epoch: int, first_step: int) -> Iterator[Sequence[Any]]:
        """The micro-batches of each step of an epoch, from ``first_step`` on."""


@dataclass
class Pace:
    """Time since the last log line, and how much of it was spent waiting for data."""

    images: int = 0
    waited: float = 0.0
    losses: list[torch.Tensor] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)

    def report(self, world_size: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self.since
        return {"images_per_s": self.images * world_size / elapsed, "data_wait": self.waited / elapsed}


class Trainer:
    """Runs a TrainState to the end of its schedule.

    Args:
        folder: where checkpoints go.
        epochs: epochs to run, cool-down included.
        evaluate: evaluates the weights that count (the EMA where there is one).
        evaluated: those weights, for ``*.safetensors``.
        extra: further entries of the checkpoints, plain containers only.
    """

    def __init__(
        self,
        config: CfgNode,
        folder: Path,
        runtime: Runtime,
        state: TrainState,
        step: TrainStep,
        schedule: Scheduler,
        epochs: int,
        batches: TrainBatches,
        evaluate: Callable[[], Metrics],
        evaluated: torch.nn.Module,
        logbook: Logbook,
        extra: dict[str, Any],
    ) -> None:
        self.config, self.folder, self.runtime, self.state, self.step = config, folder, runtime, state, step
        self.schedule, self.epochs, self.batches, self.logbook = schedule, epochs, batches, logbook
        self.evaluate, self.evaluated, self.extra = evaluate, evaluated, extra

    def fit(self, stop: StopRequest) -> bool:
        """Trains to the end, or to the step after ``stop`` was raised; returns whether the end was reached.

        Raises:
            TrainingError: the loss is not finite.
        """
        while self.state.epoch < self.epochs:
            if not self.run_epoch(stop):
                self.save(is_best=False)
                return False
            metrics = self.finish_epoch()
            self.save(is_best=metrics is not None and self.state.best_epoch == self.state.epoch - 1)
            if self.runtime.any(bool(stop.name)):
                return self.state.epoch == self.epochs
        return True

    def run_epoch(self, stop: StopRequest) -> bool:
        """The steps that remain of the epoch under way; False where it was interrupted."""
        state, per_epoch = self.state, self.batches.steps_per_epoch
        first = state.step - state.epoch * per_epoch
        self.logbook.start_epoch(state.epoch, self.epochs, per_epoch, first)
        self.schedule.step(state.epoch)
        batches = self.batches.epoch(state.epoch, first)
        pace, record = Pace(), None
        for index in range(first, per_epoch):
            asked = time.perf_counter()
            micro_batches = next(batches)
            pace.waited += time.perf_counter() - asked

            self.schedule.step_update(state.step)
            seed_everything(self.config.TRAIN.SEED, self.runtime.rank, state.step)
            previous, record = record, self.step(micro_batches)
            # The step before is checked only now, so that a GPU never waits for it.
            interrupted = self.agree(stop, previous)
            state.step += 1
            self.count(record, pace)
            last = index == per_epoch - 1
            save = self.config.LOG.SAVE_STEPS and state.step % self.config.LOG.SAVE_STEPS == 0 and not last
            if interrupted or save or last or state.step % self.config.LOG.EVERY == 0:
                pace = self.log(record, pace, index + 1)
            if interrupted and not last:
                self.check(record)
                return False
            if save:
                self.check(record)
                self.save(is_best=False)
        if record is not None:
            self.check(record)
        self.logbook.end_epoch()
        return True

    def count(self, record: StepRecord, pace: Pace) -> None:
        pace.images += record.images
        pace.losses.append(record.loss)
        self.logbook.advance()

    def agree(self, stop: StopRequest, record: StepRecord | None) -> bool:
        """Whether any process was asked to stop; every process raises if one had a loss that is not finite."""
        broken = record is not None and not torch.isfinite(record.loss).item()
        stops, bad = self.runtime.sum([float(bool(stop.name)), float(broken)])
        if bad:
            self.fail(record, self.state.step)
        return stops > 0

    def check(self, record: StepRecord) -> None:
        if self.runtime.any(not torch.isfinite(record.loss).item()):
            self.fail(record, self.state.step)

    def fail(self, record: StepRecord, step: int) -> None:
        saved = self.folder / f"{LAST}.pt"
        good = f"the last good checkpoint is {saved}" if saved.exists() else "no checkpoint was written yet"
        raise TrainingError(
            f"loss is {record.loss.item()} at step {step} (epoch {self.state.epoch + 1}), "
            f"learning rate {record.lr:.3g}, gradient norm {record.grad_norm.item():.3g}; {good}"
        )

    def log(self, record: StepRecord, pace: Pace, step_in_epoch: int) -> Pace:
        """Writes the mean over the steps since the last line; returns a fresh count."""
        state, device = self.state, self.runtime.device
        loss_sum = self.runtime.sum([torch.stack(pace.losses).double().sum().item()])[0] / self.runtime.world_size
        state.loss_sum, state.loss_steps = state.loss_sum + loss_sum, state.loss_steps + len(pace.losses)
        numbers = {
            "epoch": state.epoch + step_in_epoch / self.batches.steps_per_epoch,
            "loss": loss_sum / len(pace.losses),
            "lr": record.lr,
            "grad_norm": record.grad_norm.item(),
            **pace.report(self.runtime.world_size),
            "memory_gb": peak_memory_gb(device),
        }
        where = f"epoch {state.epoch + 1}/{self.epochs} step {step_in_epoch}/{self.batches.steps_per_epoch} "
        text = (
            f"loss {numbers['loss']:.4f} lr {record.lr:.2e} {numbers['images_per_s']:.0f} img/s "
            f"data wait {numbers['data_wait']:.0%} {numbers['memory_gb']:.1f} GB ETA {self.logbook.eta(state.step)}"
        )
        self.logbook.write("train", state.step, text, where, **numbers)
        return Pace()

    def finish_epoch(self) -> Metrics | None:
        """Counts the epoch as done, and evaluates where it is due."""
        state, every = self.state, self.config.EVAL.EVERY
        train_loss = state.loss_sum / max(state.loss_steps, 1)
        state.epoch, state.loss_sum, state.loss_steps = state.epoch + 1, 0.0, 0
        if state.epoch % every and state.epoch < self.epochs:
            return None
        began = time.perf_counter()
        self.runtime.share_buffers(self.evaluated)  # what is evaluated is what is saved
        metrics = self.evaluate()
        seconds = time.perf_counter() - began
        if metrics.top1 > state.best:
            state.best, state.best_epoch = metrics.top1, state.epoch - 1
        lr = max(group["lr"] for group in state.optimizer.param_groups)
        numbers = {**metrics.as_dict(), "train_loss": train_loss, "lr": lr}
        state.history.append({"epoch": state.epoch, "step": state.step, **numbers})
        text = (
            f"epoch {state.epoch}/{self.epochs} done: top-1 {metrics.top1:.2f} % top-5 {metrics.top5:.2f} % loss "
            f"{metrics.loss:.4f} on {metrics.count} images in {seconds:.1f} s (best {state.best:.2f} % "
            f"in epoch {state.best_epoch + 1})"
        )
        self.logbook.write("eval", state.step, text, epoch=state.epoch, seconds=seconds, **numbers)
        return metrics

    def save(self, is_best: bool) -> None:
        if self.runtime.is_main:
            content = {"format": 1, "arch": self.config.MODEL.NAME, "config": plain(self.config), **self.extra}
            content.update(self.state.state_dict())
            save_checkpoint(self.folder, content, self.evaluated.state_dict(), is_best)
        self.runtime.barrier()
        if is_best:
            logger.info("new best: top-1 %.2f %%", self.state.best)
