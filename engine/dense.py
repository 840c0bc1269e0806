"""Training of mmdet and mmseg models with the guarantees of our own trainer: loop and records for mmengine's Runner.

``ResumableLoop`` takes every step with random numbers drawn from (seed, rank, step) and stops cleanly on a signal;
``RunRecords`` writes the run's folder as in classification: last.pt, best.pt, log.jsonl and tensorboard/.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor, nn

from .checkpoint import LAST, save_checkpoint
from .config import ConfigError
from .logbook import Logbook, peak_memory_gb
from .runtime import Runtime, StopRequest, logger, seed_everything
from .train import TrainingError


@LOOPS.register_module()
class ResumableLoop(BaseLoop):
    """A train loop of epochs or of iterations that can be left and entered at any step.

    Its data set has to be a SeededDataset with EpochSampler and ResumableBatches. Hooks may have a method
    ``after_progress(runner)``, called where the state should be saved.

    Args:
        max_epochs, max_iters: the length of the training, one of them.
        val_interval: epochs, with ``max_iters`` iterations, between evaluations; there is one at the end in any case.
        save_steps: iterations between checkpoints beside those at the end of each epoch and before evaluations;
            0 for none.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        val_interval: int = 1,
        save_steps: int = 0,
    ) -> None:
        if (max_epochs is None) == (max_iters is None):
            raise ValueError(f"one of max_epochs and max_iters is needed, got {max_epochs} and {max_iters}")
        super().__init__(runner, dataloader)
        self.by_epoch, self.val_interval, self.save_steps = max_iters is None, val_interval, save_steps
        self.per_epoch = len(self.dataloader)
        self._max_iters = max_epochs * self.per_epoch if self.by_epoch else max_iters
        self._max_epochs = -(-self._max_iters // self.per_epoch)
        self._iter, self.last_val, self.interrupted, self.val_begin = 0, 0, False, 0
        rank, world_size = get_dist_info()
        control = dist.new_group(backend="gloo") if world_size > 1 else None
        self.runtime = Runtime(rank, world_size, torch.device(get_device()), control)

    @property
    def max_epochs(self) -> int:
        return self._max_epochs

    @property
    def max_iters(self) -> int:
        return self._max_iters

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self._iter // self.per_epoch

    @property
    def iter(self) -> int:
        """Iterations that are done."""
        return self._iter

    def go_to(self, iteration: int, last_val: int) -> None:
        """Continues after ``iteration`` iterations, the last evaluation having been after ``last_val``."""
        self._iter, self.last_val = iteration, last_val

    def run(self) -> nn.Module:
        with StopRequest() as self.stop:
            self.runner.call_hook("before_train")
            self.validate()  # where a process died while it evaluated
            while self._iter < self._max_iters and not self.interrupted:
                self.run_epoch()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """The iterations that remain of the epoch under way."""
        runner, first = self.runner, self._iter % self.per_epoch
        batches = self.dataloader.batch_sampler
        batches.first = first
        batches.sampler.set_epoch(self.epoch)
        runner.call_hook("before_train_epoch")
        for index, batch in enumerate(self.dataloader, first):
            self.run_iter(index, batch)
            if self.interrupted or self._iter == self._max_iters:
                return

    def run_iter(self, index: int, batch: Mapping[str, Any]) -> None:
        runner = self.runner
        runner.model.train()
        seed_everything(runner.seed or 0, self.runtime.rank, self._iter)
        runner.call_hook("before_train_iter", batch_idx=index, data_batch=batch)
        outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        runner.call_hook("after_train_iter", batch_idx=index, data_batch=batch, outputs=outputs)
        ends_epoch = index == self.per_epoch - 1
        if ends_epoch:
            runner.call_hook("after_train_epoch")
        self._iter += 1
        self.interrupted = self.runtime.any(bool(self.stop.name))
        saves = self.save_steps and self._iter % self.save_steps == 0
        if self.interrupted or ends_epoch or saves or self.val_is_due():
            runner.call_hook("after_progress")
        if not self.interrupted:
            self.validate()

    def val_is_due(self) -> bool:
        every = self.val_interval * (self.per_epoch if self.by_epoch else 1)
        at_end = self._iter == self._max_iters
        return self._iter > self.last_val and (self._iter % every == 0 or at_end) and self.runner.val_loop is not None

    def validate(self) -> None:
        if self.val_is_due():
            self.runner.val_loop.run()
            self.last_val = self._iter
            self.runner.call_hook("after_progress")


@HOOKS.register_module()
class RunRecords(Hook):
    """Log lines, TensorBoard, checkpoints and resuming of a training; evaluation shows its progress.

    Args:
        metric: what the best checkpoint has most of, e.g. ``coco/segm_mAP``.
        every: iterations between log lines.
        max_bad: images that cannot be read after which the training is given up.

    Attributes:
        resume: content of the checkpoint to continue from, set by the tool before training.
        history: the results of each evaluation.
    """

    priority = "VERY_HIGH"

    def __init__(self, metric: str, every: int = 50, max_bad: int = 100) -> None:
        self.metric, self.every, self.max_bad = metric, every, max_bad
        self.resume: Mapping[str, Any] | None = None
        self.history: list[dict[str, Any]] = []
        self.best, self.best_iter, self.bad = float("-inf"), 0, {}
        self.previous: Tensor | None = None
        self.losses: list[Mapping[str, Tensor]] = []
        self.waited, self.images = 0.0, 0

    def before_train(self, runner: Runner) -> None:
        if self.resume is not None:
            self.restore(runner, self.resume)
        loop = runner.train_loop
        folder = Path(runner.work_dir)
        self.logbook = Logbook(folder, loop.runtime, loop.max_iters, loop.iter, tensorboard=True)
        self.restart()

    def restart(self) -> None:
        self.since = self.asked = time.perf_counter()
        self.waited, self.images, self.losses = 0.0, 0, []

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        self.logbook.start_epoch(loop.epoch, loop.max_epochs, loop.per_epoch, loop.iter % loop.per_epoch)
        self.asked = time.perf_counter()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.waited += time.perf_counter() - self.asked

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loop = runner.train_loop
        self.count_bad(loop.runtime, data_batch)
        # The step before is checked only now, so that a GPU never waits for it.
        if self.previous is not None and not torch.isfinite(self.previous).item():
            self.fail(runner, loop.iter)
        self.previous = outputs["loss"].detach()
        self.losses.append({name: torch.as_tensor(value).detach() for name, value in outputs.items()})
        self.images += len(data_batch["inputs"])
        self.logbook.advance()
        if (loop.iter + 1) % self.every == 0 or batch_idx == loop.per_epoch - 1:
            self.log(runner, batch_idx)
        self.asked = time.perf_counter()

    def count_bad(self, runtime: Runtime, batch: Mapping[str, Any]) -> None:
        """Names images that were left out; too many end the training."""
        for sample in batch["data_samples"]:
            for name in sample.get("replaced", ()):
                if name not in self.bad:
                    self.bad[name] = True
                    logger.warning("skipping %s", name)
        if len(self.bad) > self.max_bad:
            raise TrainingError(
                f"{len(self.bad)} images cannot be read (max_bad is {self.max_bad}), {next(iter(self.bad))}"
            )

    def fail(self, runner: Runner, iteration: int) -> None:
        saved = Path(runner.work_dir) / f"{LAST}.pt"
        good = f"the last good checkpoint is {saved}" if saved.exists() else "no checkpoint was written yet"
        raise TrainingError(f"loss is {self.previous.item()} at iteration {iteration}; {good}")

    def log(self, runner: Runner, batch_idx: int) -> None:
        loop, runtime = runner.train_loop, runner.train_loop.runtime
        names = sorted(set.intersection(*(set(record) for record in self.losses)))
        sums = [sum(record[name].double().mean().item() for record in self.losses) for name in names]
        means = [total / runtime.world_size / len(self.losses) for total in runtime.sum(sums)]
        elapsed = time.perf_counter() - self.since
        rates = {
            "lr": runner.optim_wrapper.get_lr()["lr"][0],
            "images_per_s": self.images * runtime.world_size / elapsed,
            "data_wait": self.waited / elapsed,
            "memory_gb": peak_memory_gb(runtime.device),
        }
        numbers = dict(zip(names, means, strict=True))
        parts = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}" for name, value in numbers.items() if name != "loss"
        )
        text = (
            f"loss {numbers['loss']:.4f} ({parts}) lr {rates['lr']:.2e} {rates['images_per_s']:.1f} img/s data wait "
            f"{rates['data_wait']:.0%} {rates['memory_gb']:.1f} GB ETA {self.logbook.eta(loop.iter + 1)}"
        )
        where = f"epoch {loop.epoch + 1}/{loop.max_epochs} step {batch_idx + 1}/{loop.per_epoch} "
        position = (loop.iter + 1) / loop.per_epoch
        self.logbook.write("train", loop.iter + 1, text, where, epoch=position, **numbers, **rates)
        self.restart()

    def after_train_epoch(self, runner: Runner) -> None:
        self.logbook.end_epoch()

    def after_progress(self, runner: Runner) -> None:
        """Saves the state of the training, after making sure that it is sound."""
        loop = runner.train_loop
        if self.previous is not None and loop.runtime.any(not torch.isfinite(self.previous).item()):
            self.fail(runner, loop.iter)
        if loop.runtime.is_main:
            is_best = bool(self.history) and self.best_iter == loop.iter == loop.last_val
            weights = unwrap(runner.model).state_dict()
            save_checkpoint(Path(runner.work_dir), self.content(runner), weights, is_best)
        loop.runtime.barrier()

    def content(self, runner: Runner) -> dict[str, Any]:
        """What last.pt holds: plain containers and tensors only."""
        loop, classes = runner.train_loop, list(runner.train_dataloader.dataset.metainfo["classes"])
        return {
            "format": 1,
            "arch": runner.cfg.model.type,
            "config": {"text": runner.cfg.pretty_text},
            "classes": classes,
            "epoch": loop.epoch,
            "iter": loop.iter,
            "last_val": loop.last_val,
            "best": [self.best, self.best_iter],
            "history": self.history,
            "state_dict": unwrap(runner.model).state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "schedulers": [plain_state(scheduler.state_dict()) for scheduler in runner.param_schedulers],
        }

    def restore(self, runner: Runner, content: Mapping[str, Any]) -> None:
        loop = runner.train_loop
        try:
            unwrap(runner.model).load_state_dict(content["state_dict"])
            runner.optim_wrapper.load_state_dict(content["optimizer"])
            for scheduler, state in zip(runner.param_schedulers, content["schedulers"], strict=True):
                scheduler.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(f"the checkpoint does not fit this run: {str(error).splitlines()[0]}") from error
        (self.best, self.best_iter), self.history = content["best"], list(content["history"])
        loop.go_to(content["iter"], content["last_val"])
        runner.optim_wrapper.initialize_count_status(runner.model, loop.iter, loop.max_iters)
        logger.info("resumed after iteration %d, in epoch %d", loop.iter, loop.epoch + 1)

    def before_val(self, runner: Runner) -> None:
        runner.train_loop.runtime.share_buffers(unwrap(runner.model))  # what is evaluated is what is saved
        self.before_test(runner)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._tell(batch_idx + 1, len(runner.val_dataloader))

    def before_test(self, runner: Runner) -> None:
        self.val_began = self.val_told = time.perf_counter()

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._tell(batch_idx + 1, len(runner.test_dataloader))

    def _tell(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self.val_told > 15:
            self.val_told = now
            remaining = (now - self.val_began) / done * (total - done)
            logger.info("evaluating: batch %d of %d, ETA %.0f s", done, total, remaining)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        loop, seconds = runner.train_loop, time.perf_counter() - self.val_began
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        if not numbers:  # mmdet's answer where nothing was found
            logger.warning("the evaluation found nothing: %s counts as 0", self.metric)
            numbers = {self.metric: 0.0}
        if self.metric not in numbers:
            raise ConfigError(f"the evaluation has no {self.metric!r}; it has {', '.join(numbers)}")
        if numbers[self.metric] > self.best:
            self.best, self.best_iter = numbers[self.metric], loop.iter
        self.history.append({"epoch": loop.epoch, "step": loop.iter, **numbers})
        short = {name.partition("/")[2]: value for name, value in numbers.items()}
        listed = " ".join(f"{name} {value:.3f}" for name, value in short.items() if "/" not in name)
        text = f"after iteration {loop.iter} of {loop.max_iters}: {listed} in {seconds:.1f} s (best {self.best:.3f})"
        self.logbook.write("eval", loop.iter, text, epoch=loop.epoch, seconds=seconds, **numbers)
        self.restart()

    def after_train(self, runner: Runner) -> None:
        self.logbook.close()


def unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's state without what its configuration determines, in plain containers."""
    return {name: value for name, value in state.items() if isinstance(value, (int, float, str, list, type(None)))}
