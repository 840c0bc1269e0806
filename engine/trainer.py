"""The training loop, the same for all tasks: steps, evaluation, checkpoints, and a clean end whatever happens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from elsa.core import ProcessLost, TrainingError, UnreadableData, logger, seed_everything

from .distributed import Runtime
from .evaluate import Unreadable
from .logbook import Logbook
from .monitor import Gallery, Monitor
from .plan import Plan
from .profile import Profile
from .signals import StopRequest
from .soundness import Guard
from .step import Schedule, Step, StepRecord, TrainState


class TrainBatches(Protocol):
    """What the trainer needs of the training data; ``bad`` has the unreadable images that this process met."""

    bad: Unreadable

    def epoch(self, epoch: int, first_step: int) -> Iterator[Sequence[Any]]:
        """The micro-batches of each step of an epoch, from ``first_step`` on."""
        ...


class Checkpoints(Protocol):
    """Where the state of a run is kept."""

    def save(self, about: Mapping[str, Any], state: TrainState, evaluated: torch.nn.Module, is_best: bool) -> None: ...

    def last(self) -> Path | None:
        """The one to go on from, where there is one."""
        ...

    def finish(self) -> None:
        """Returns when what was saved is on the disk."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives: numbers by name, the images counted, and a text for people."""

    numbers: dict[str, float]
    count: int
    text: str


class Trainer:
    """Runs a TrainState to the end of its plan.

    Args:
        schedule: learning rates of each step.
        evaluate: evaluates ``evaluated``, the weights that count (the EMA where there is one).
        metric: the number of an evaluation that the best checkpoint has most of.
        about: the entries of a checkpoint that do not change: see ``checkpoint``.
        checkpoints: writes them.
        max_skipped: most steps in a row that are skipped: see Guard.
        early_stop: epochs without a better evaluation after which the training ends; 0: never.
    """

    def __init__(
        self,
        plan: Plan,
        runtime: Runtime,
        state: TrainState,
        step: Step,
        schedule: Schedule,
        batches: TrainBatches,
        evaluate: Callable[[], Evaluation],
        evaluated: torch.nn.Module,
        metric: str,
        logbook: Logbook,
        about: Mapping[str, Any],
        checkpoints: Checkpoints,
        max_skipped: int,
        early_stop: int,
        gallery: Gallery | None = None,
        profile: Profile | None = None,
    ) -> None:
        self.plan, self.runtime, self.state, self.step = plan, runtime, state, step
        self.schedule, self.batches, self.logbook, self.about = schedule, batches, logbook, about
        self.checkpoints = checkpoints
        self.evaluate, self.evaluated, self.metric = evaluate, evaluated, metric
        self.monitor = Monitor(plan, runtime, state, logbook, about["config"], gallery, profile)
        self.patience = early_stop * plan.steps_per_epoch
        self.guard = Guard(plan, runtime, state, max_skipped, self.last_good)

    def fit(self, stop: StopRequest) -> bool:
        """Trains until it is over, or to the step after ``stop`` was raised; returns whether it is over.

        Raises:
            TrainingError: a loss, a gradient, the weights or the metric are not finite, too many images are unreadable,
                or another process is lost.
        """
        try:
            finished = self.run(stop)
            self.monitor.close()
            self.checkpoints.finish()
            return finished
        except UnreadableData as error:
            raise TrainingError(f"{error}; {self.last_good()}") from error
        except OSError as error:  # a full disk, for one
            where = f" {error.filename}" if error.filename else ""
            raise TrainingError(f"{error.strerror or error}{where}; {self.last_good()}") from error
        except ProcessLost as error:
            raise ProcessLost(f"{error}; {self.last_good()}") from error
        except TrainingError:
            raise
        except RuntimeError as error:
            try:
                self.runtime.raise_lost(error)
            except ProcessLost as lost:
                raise ProcessLost(f"{lost}; {self.last_good()}") from error
            raise

    def run(self, stop: StopRequest) -> bool:
        if self.evaluation_is_due():  # where a process died while it evaluated
            self.evaluate_and_save()
        while not self.is_over():
            if not self.run_epoch(stop):
                return self.is_over()
        return True

    def is_over(self) -> bool:
        """Whether all steps are done, or no evaluation was better than the best for ``early_stop`` epochs: what a
        checkpoint holds alone decides, the same in every process."""
        state = self.state
        stalled = 0 < self.patience <= state.last_eval - state.best_step
        return not self.evaluation_is_due() and (stalled or state.step == self.plan.total_steps)

    def run_epoch(self, stop: StopRequest) -> bool:
        """The steps that remain of the epoch under way, unless the training is over before; False where it was
        interrupted."""
        state, plan = self.state, self.plan
        epoch, first = divmod(state.step, plan.steps_per_epoch)
        end = min(plan.steps_per_epoch, plan.total_steps - epoch * plan.steps_per_epoch)
        if not first:
            state.loss_sum, state.loss_steps = 0.0, 0
        self.logbook.start_epoch(epoch, plan.epochs, plan.steps_per_epoch, first)
        batches = self.batches.epoch(epoch, first)
        self.monitor.restart()
        record = None
        for index in range(first, end):
            self.runtime.note(f"waiting for the data of step {state.step + 1}")
            with self.monitor.waiting():
                micro_batches = next(batches)
            self.runtime.note(f"computing step {state.step + 1}")
            self.monitor.look(self.step, micro_batches)
            self.schedule.set(state.step)
            seed_everything(plan.seed, self.runtime.rank, state.step)
            previous, record = record, self.step(micro_batches)
            # The step before is checked only now, so that a GPU never waits for it.
            interrupted = self.agree(stop, previous)
            state.step += 1
            state.epoch = state.step // plan.steps_per_epoch
            self.count(record)
            due = self.evaluation_is_due()
            save = interrupted or due or index == end - 1 or (plan.save_every and state.step % plan.save_every == 0)
            self.runtime.note(f"concluding step {state.step}")
            if save or state.step % plan.log_every == 0:
                self.guard.is_sound(record)  # counts it, so that the line has it
                self.monitor.write(record, index + 1)
            if save:
                self.guard.check(record)
                self.save(is_best=False)
            if interrupted:
                return False
            if due:
                self.evaluate_and_save()
                self.monitor.restart()
                if self.is_over():
                    break
        self.logbook.end_epoch()
        return True

    def count(self, record: StepRecord) -> None:
        self.monitor.count(record)

    def agree(self, stop: StopRequest, record: StepRecord | None) -> bool:
        """Whether any process was asked to stop; every process raises if a step of one was not sound, or if together
        they met too many unreadable images."""
        broken = record is not None and not self.guard.is_sound(record)
        unreadable = self.batches.bad
        with self.monitor.exchanging():
            stops, bad, untold = self.runtime.sum([float(bool(stop.name)), float(broken), float(unreadable.untold)])
        if bad and record is not None:
            self.guard.fail(record)
        if untold:
            unreadable.merge(self.runtime.gather(unreadable.names))
        return stops > 0

    def last_good(self) -> str:
        saved = self.checkpoints.last()
        return "no checkpoint was written yet" if saved is None else f"the last good checkpoint is {saved}"

    def evaluation_is_due(self) -> bool:
        step, plan = self.state.step, self.plan
        return step > self.state.last_eval and (step % plan.evaluate_every == 0 or step == plan.total_steps)

    def evaluate_and_save(self) -> None:
        """Evaluates, notes whether that is the best so far, and saves."""
        state, began = self.state, time.perf_counter()
        self.runtime.note(f"evaluating after step {state.step}")
        self.runtime.share_buffers(self.evaluated)  # what is evaluated is what is saved
        with self.step.parallel.whole(self.evaluated):
            result = self.evaluate()
        seconds = time.perf_counter() - began
        if not math.isfinite(value := result.numbers[self.metric]):
            self.checkpoints.finish()
            raise TrainingError(
                f"{self.metric} is {value} after step {state.step}: no best can be told. "
                f"{self.checkpoints.last()} has the weights of this step"
            )
        is_best = value > state.best
        if is_best:
            state.best, state.best_step = value, state.step
        lr = max(group["lr"] for group in state.optimizer.param_groups)
        numbers = {**result.numbers, "train_loss": state.loss_sum / max(state.loss_steps, 1), "lr": lr}
        state.last_eval = state.step
        state.history.append({"epoch": state.epoch, "step": state.step, **numbers})
        text = (
            f"epoch {state.step / self.plan.steps_per_epoch:.4g}/{self.plan.epochs} done: {result.text} on "
            f"{result.count} images in {seconds:.1f} s "
            f"(best {self.metric} {state.best:.4g} after step {state.best_step})"
        )
        self.logbook.write("eval", state.step, text, epoch=state.epoch, seconds=seconds, **numbers)
        self.save(is_best)

    def save(self, is_best: bool) -> None:
        self.runtime.note(f"saving after step {self.state.step}")
        self.checkpoints.save(self.about, self.state, self.evaluated, is_best)
        if is_best:
            logger.info("new best: %s %.4g", self.metric, self.state.best)
