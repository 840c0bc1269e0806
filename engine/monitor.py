"""What a run tells of its steps: means since the last line, pace, where the time went, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from elsa.core import TrainingError, UserError, logger, seed_everything

from .distributed import Runtime
from .logbook import Logbook, peak_memory_gb
from .plan import Plan
from .profile import Profile
from .step import Step, StepRecord, TrainState
from .utilisation import Peak, count_flops, peak

SLOW = 0.1  # share of the time that may be spent waiting for data without a word
UNSETTLED, JUDGED, SILENT = 2, 10, 600.0  # steps after a start; steps that tell; seconds between two warnings
WORKERS = ("DATA.WORKERS", "train_dataloader.num_workers")


class Gallery(Protocol):
    """Draws what is shown beside the numbers."""

    def batch(self, step: Step, batch: Any) -> Any:
        """Images of a micro-batch as the model gets them: (H, W, 3) in 0 … 255, a numpy array."""
        ...


class Waits:
    """Where the time of this process went since the last line, in seconds.

    Attributes:
        data: waiting for data; exchanges: in the control group, waiting for slower processes included.
    """

    def __init__(self) -> None:
        self.data = self.exchanges = 0.0

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - began)


class Monitor:
    """Counts what happens between two log lines, and writes them. Nothing here waits for a GPU but a log line.

    Args:
        recipe: the values of the recipe, for what a warning names.
        gallery: draws batches; shown are the first of this launch and the first after each evaluation.
        profile: of some steps.
    """

    def __init__(
        self,
        plan: Plan,
        runtime: Runtime,
        state: TrainState,
        logbook: Logbook,
        recipe: Mapping[str, Any],
        gallery: Gallery | None = None,
        profile: Profile | None = None,
    ) -> None:
        self.plan, self.runtime, self.state, self.logbook, self.recipe = plan, runtime, state, logbook, recipe
        self.gallery, self.profile = gallery, profile
        self.shown: int | None = None  # evaluations that were done when a batch was last shown
        self.flops: float | None = None  # of a step, for each image
        self.peak: Peak | None = None
        self.reducer: DistributedDataParallel | None = None
        self.judged: list[tuple[float, float]] = []  # (wait, whole) seconds of steps, workers being under way
        self.warned = -SILENT
        self.step: Step
        self.restart()

    def restart(self) -> None:
        """Begins to count afresh after what is no training: loader processes may start again."""
        self.since_start = 0
        self._begin()

    def _begin(self) -> None:
        self.images, self.waits = 0, Waits()
        self.losses: list[dict[str, torch.Tensor]] = []
        self.since = self.stepped = time.perf_counter()
        self.waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for the data of a step."""
        if self.profile is not None:
            self._apart(self.profile.begin)
        before = self.waits.data
        with self.waits.during("data"), record_function("load data"):
            yield
        self.waited = self.waits.data - before

    def exchanging(self) -> AbstractContextManager[None]:
        """Around what the processes tell each other in each step."""
        return self.waits.during("exchanges")

    def look(self, step: Step, micro_batches: Sequence[Any]) -> None:
        """Before a step: counts its operations, the first time, and shows its images where they are due. Whatever
        random numbers that takes, the step's own are seeded after it."""
        self._apart(lambda: self._look(step, micro_batches))

    def _look(self, step: Step, micro_batches: Sequence[Any]) -> None:
        self.step = step
        if self.flops is None:
            self.flops = _counted(step, micro_batches[0])
            self.reducer = next((m for m in step.model.modules() if isinstance(m, DistributedDataParallel)), None)
            if self.runtime.is_main and self.flops:
                self.peak = peak(self.runtime.device, self.plan.precision)
                logger.info(
                    "a step computes %.4g GFLOP an image (3 forward passes); utilisation is of %.4g TFLOP/s, %s",
                    self.flops / 1e9, self.peak.flops / 1e12, self.peak.origin,
                )  # fmt: skip
        if self.gallery is not None and self.runtime.is_main and self.shown != len(self.state.history):
            self.shown = len(self.state.history)
            seed_everything(self.plan.seed, self.runtime.rank, self.state.step)  # mixed as the step will mix them
            self.logbook.show("train/batch", self.state.step + 1, self.gallery.batch(step, micro_batches[0]))

    def _apart(self, work: Callable[[], object]) -> None:
        """Work that is no training; its time does not count."""
        began = time.perf_counter()
        work()
        spent = time.perf_counter() - began
        self.since, self.stepped = self.since + spent, self.stepped + spent

    def close(self) -> None:
        """At the end of a launch."""
        if self.profile is not None:
            self.profile.close()

    def count(self, record: StepRecord) -> None:
        if self.profile is not None:
            self._apart(self.profile.end)
        self.images += record.images
        self.losses.append({"loss": record.loss, **record.terms})
        now = time.perf_counter()
        self.since_start += 1
        if self.since_start > UNSETTLED and self.runtime.is_main:
            self.judged.append((self.waited, now - self.stepped))
        self.stepped = now
        self.logbook.advance()

    def write(self, record: StepRecord, step_in_epoch: int) -> None:
        """The mean over the steps since the last line."""
        elapsed = time.perf_counter() - self.since
        means, (data, communication) = self._means(elapsed)
        numbers: dict[str, Any] = {
            "epoch": self.state.step / self.plan.steps_per_epoch,
            **means,
            "lr": record.lr,
            "grad_norm": record.grad_norm.item(),
            "skipped": self.state.skipped,
            **({} if (scale := self.step.loss_scale()) is None else {"loss_scale": scale}),
            **self._pace(elapsed),
            "data_wait": data,
            "communication": communication,
            "compute": 1 - data - communication,
            **_memory(self.runtime.device),
        }
        if rates := self._rates():
            numbers["lr_groups"] = rates
        where = f"epoch {(self.state.step - 1) // self.plan.steps_per_epoch + 1}/{self.plan.epochs} "
        where += f"step {step_in_epoch}/{self.plan.steps_per_epoch} "
        self.logbook.write("train", self.state.step, self._text(numbers, list(means)), where, **numbers)
        if self.runtime.is_main:
            self._warn_of_waiting()
        self._begin()

    def _means(self, elapsed: float) -> tuple[dict[str, float], tuple[float, float]]:
        """Means over the steps and processes: of losses, and of the shares of time waited for data and for others."""
        state, runtime = self.state, self.runtime
        names = runtime.shared([name for name in self.losses[0] if all(name in losses for losses in self.losses)])
        mine = torch.stack([torch.stack([losses[name] for name in names]) for losses in self.losses]).cpu().double()
        gradients = self._gradient_wait() * len(self.losses)
        waited = self.waits.data / elapsed
        shares = [waited, min((self.waits.exchanges + gradients) / elapsed, 1 - waited)]
        *sums, data, communication = runtime.sum([*mine.flatten().tolist(), *shares])
        table = torch.tensor(sums, dtype=torch.float64).view(mine.shape) / runtime.world_size  # (steps, names)
        table = table[torch.isfinite(table[:, names.index("loss")])]  # a step that was skipped may have none
        for loss in table[:, names.index("loss")].tolist():  # one by one: the same sum wherever a run was interrupted
            state.loss_sum += loss
        state.loss_steps += len(table)
        return dict(zip(names, table.mean(0).tolist(), strict=True)), (
            data / runtime.world_size,
            communication / runtime.world_size,
        )

    def _gradient_wait(self) -> float:
        """Seconds that gradients were on their way after the backward pass, in the step that DDP measured last (it
        measures the first ten of a launch and each hundredth); 0 where there is no DDP."""
        if self.reducer is None:
            return 0.0
        told = self.reducer._get_ddp_logging_data()
        exchange, hidden = (told.get(f"backward_{name}_time", 0) for name in ("comm", "compute_comm_overlap"))
        return max(0, exchange - hidden) / 1e9

    def _pace(self, elapsed: float) -> dict[str, float]:
        each = self.images / elapsed
        pace = {"images_per_s": each * self.runtime.world_size, "images_per_s_per_gpu": each}
        if self.flops and self.peak is not None:
            pace |= {"tflops_per_gpu": self.flops * each / 1e12, "mfu": self.flops * each / self.peak.flops}
        return pace

    def _rates(self) -> dict[str, float]:
        """The learning rates of the parameter groups where they are not all the same: of groups with one rate the first
        stands for all, by the name of its first parameter."""
        groups = self.state.optimizer.param_groups
        if len({group["lr"] for group in groups}) == 1:
            return {}
        names = {parameter: name for name, parameter in self.state.model.named_parameters()}
        rates: dict[float, str] = {}
        for group in groups:
            rates.setdefault(group["lr"], names.get(group["params"][0], "other") if group["params"] else "none")
        return {name: rate for rate, name in rates.items()}

    def _text(self, numbers: Mapping[str, Any], losses: Sequence[str]) -> str:
        """A line for people."""
        terms = " ".join(f"{name.removeprefix('loss_')} {numbers[name]:.3f}" for name in losses if name != "loss")
        several = self.runtime.world_size > 1
        each = f" ({_short(numbers['images_per_s_per_gpu'])} each)" if several else ""
        shares = f"data wait {numbers['data_wait']:.0%}" + (f" comm {numbers['communication']:.0%}" if several else "")
        lost = f"skipped {numbers['skipped']} " if numbers["skipped"] else ""
        used = f"MFU {100 * numbers['mfu']:.2g}% " if "mfu" in numbers else ""
        return (
            f"loss {numbers['loss']:.4f} {f'({terms}) ' if terms else ''}lr {numbers['lr']:.2e} "
            f"grad {numbers['grad_norm']:.3g} {_short(numbers['images_per_s'])} img/s{each} {used}{shares} {lost}"
            f"{numbers['memory_gb']:.1f} GB ETA {self.logbook.eta(self.state.step)}"
        )

    def _warn_of_waiting(self) -> None:
        """A word where steps wait long for data, loader processes being under way; not too often."""
        if len(self.judged) < JUDGED:
            return
        waited, whole = (sum(column) for column in zip(*self.judged, strict=True))
        self.judged.clear()
        if waited <= SLOW * whole or time.monotonic() - self.warned < SILENT:
            return
        self.warned = time.monotonic()
        name = next((name for name in WORKERS if name in self.recipe), WORKERS[1])
        logger.warning(
            "%.0f%% of the time is spent waiting for data: raise %s (%s now) as far as there are cores; "
            "tools/benchmark.py data CONFIG measures how many are needed",
            100 * waited / whole, name, self.recipe.get(name, 0),
        )  # fmt: skip


def _short(pace: float) -> str:
    return f"{pace:.3g}" if pace < 1000 else f"{pace:.0f}"


def _counted(step: Step, batch: Any) -> float:
    """Operations of a step for each image; 0, with the reason told, where they cannot be counted."""
    try:
        return count_flops(step, batch)
    except (UserError, TrainingError):  # the step would end with it, too
        raise
    except Exception as error:  # memory for a second model, or a model that cannot be copied: training needs neither
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("log lines have no MFU, as operations cannot be counted: %.200s", reason)
        return 0.0


def _memory(device: torch.device) -> dict[str, float]:
    """Most memory so far: in use, and on a GPU what torch holds for it."""
    if device.type != "cuda":
        return {"memory_gb": peak_memory_gb(device)}
    return {"memory_gb": peak_memory_gb(device), "memory_reserved_gb": torch.cuda.max_memory_reserved(device) / 2**30}
