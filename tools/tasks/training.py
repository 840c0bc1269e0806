"""How a training goes, the same for all tasks: recipe → plan → task → trainer → run folder."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from elsa.core import logger, write_json
from elsa.data import TrainLoader
from elsa.engine import (
    Evaluation,
    Logbook,
    Options,
    Parallel,
    Plan,
    Precision,
    Recipe,
    RunFolder,
    Runtime,
    Schedule,
    Step,
    StopRequest,
    Trainer,
    TrainState,
    choose_parallel,
    describe_environment,
    peak_memory_gb,
    read_log,
)
from elsa.engine.checkpoint import FORMAT, WholeCheckpoints
from elsa.engine.shards import ShardedCheckpoints
from elsa.kernels import backend_info

from .pictures import draw_curves


@dataclass
class Training:
    """What a task gives to be trained.

    Attributes:
        task, arch: names for people and for the checkpoint.
        make_step: the model as it is called (distributed, compiled), the state, how it is spread → the step.
        evaluate: a module with the weights that count → the evaluation.
        metric: what the best checkpoint has most of; curves: beginnings of the names that curves.png draws.
        classes: class names, in the order of the labels; meta: further entries of the checkpoint.
        evaluate_ema: whether the average of the weights counts where one is kept.
    """

    task: str
    arch: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    batches: TrainLoader
    plan: Plan
    make_step: Callable[[nn.Module, TrainState, Parallel], Step]
    evaluate: Callable[[nn.Module], Evaluation]
    metric: str
    curves: Sequence[str]
    classes: Sequence[str]
    options: Options
    meta: Mapping[str, Any] = field(default_factory=dict)
    evaluate_ema: bool = True

    @property
    def data(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        return {"images": self.plan.train_images, "classes": list(self.classes)}


def train(
    build: Callable[[Recipe, Runtime, bool, bool], Training], recipe: Recipe, args: argparse.Namespace, runtime: Runtime
) -> None:
    """Puts a run together, trains, and leaves curves and a summary; everything is checked before DIR is written.

    Args:
        build: recipe, this process, whether the run is fresh (a resumed one needs no pretrained file), whether a
            pretrained file may run code → its parts.
    """
    with RunFolder(args.output, runtime, args.resume, args.overwrite).claimed() as folder:
        content = folder.find(recipe)
        training = build(recipe, runtime, content is None, args.trust_checkpoint)
        model, options = training.model, training.options
        parallel = choose_parallel(options.parallel, runtime)
        average = None if options.ema_decay is None else ModelEmaV3(model, decay=options.ema_decay)
        spread = parallel.spread(model, training.optimizer, average and average.module)
        state = TrainState(
            model=model,
            optimizer=training.optimizer,
            scaler=training.precision.grad_scaler(model, training.optimizer),
            ema=average,
            schedule=training.schedule,
        )
        if content is not None:
            folder.check_data(content, training.data)
            folder.restore(state, content, parallel)
        where = f"is --output {args.output} on a disk that all share?"
        runtime.check_same({"the step to go on from": state.step}, where)
        facts = {**training.data, "validation images": training.plan.val_images}
        runtime.check_same({f"training data, {name}": value for name, value in facts.items()}, "is the data the same?")
        step = training.make_step(torch.compile(spread) if options.compile else spread, state, parallel)
        counted = model if state.ema is None or not training.evaluate_ema else state.ema.module

        folder.open(recipe, training.plan, environment(runtime), fresh=content is None)
        logger.info("%s: %.2f M parameters, %s on %s", training.arch, parameters(model) / 1e6, training.precision,
                    runtime.device)  # fmt: skip
        for line in training.plan.lines():
            logger.info("%s", line)
        steps = [record["step"] for record in state.history]
        logbook = Logbook(args.output, runtime, training.plan.total_steps, state.step, options.tensorboard, steps)
        about = {"format": FORMAT, "task": training.task, "arch": training.arch, "config": dict(recipe.values),
                 "data": training.data, "metric": training.metric, "classes": list(training.classes),
                 **training.meta}  # fmt: skip
        checkpoints = (ShardedCheckpoints(args.output, runtime, parallel) if parallel.divides
                       else WholeCheckpoints(args.output, runtime))  # fmt: skip
        trainer = Trainer(
            training.plan, runtime, state, step, training.schedule, training.batches,
            evaluate=lambda: training.evaluate(counted), evaluated=counted, metric=training.metric,
            logbook=logbook, about=about, checkpoints=checkpoints, max_skipped=options.max_skipped,
        )  # fmt: skip
        began = time.perf_counter()
        with StopRequest() as stop:
            finished = trainer.fit(stop)
        logbook.close()
        if runtime.is_main:
            _conclude(training, args.output, state, finished, time.perf_counter() - began, runtime)


def environment(runtime: Runtime) -> dict[str, Any]:
    """What a run says about the machine, and which implementations of the operator it had."""
    return {**describe_environment(runtime), "operator": backend_info()}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _conclude(
    training: Training, folder: Path, state: TrainState, finished: bool, seconds: float, runtime: Runtime
) -> None:
    """Curves, a summary for machines, and the last lines for people."""
    if state.history:
        title = f"{training.arch}: {folder.name}"
        draw_curves(read_log(folder), folder / "curves.png", title, training.curves, training.metric)
    if not finished:
        logger.info("stopped after step %d and saved; go on with --resume auto", state.step)
        return
    last, plan = state.history[-1], training.plan
    best_epoch = -(-state.best_step // plan.steps_per_epoch)
    summary = {
        "task": training.task,
        "model": training.arch,
        "parameters": parameters(state.model),
        "iterations": state.step,
        "epochs": state.epoch,
        "metric": training.metric,
        "last": last,
        "best": {training.metric: state.best, "iteration": state.best_step, "epoch": best_epoch},
        "unreadable": list(training.batches.bad.names),
        "skipped": state.skipped,
        "seconds_of_this_launch": round(seconds, 1),
        "peak_memory_gb": round(peak_memory_gb(runtime.device), 2),
    }
    write_json(folder / "summary.json", summary)
    logger.info("finished: %s %.4g in the end, best %.4g after step %d (epoch %d); %.0f s, %.2f GB", training.metric,
                last[training.metric], state.best, state.best_step, best_epoch, seconds,
                summary["peak_memory_gb"])  # fmt: skip
    logger.info("%s/ has best.pt, best.safetensors, last.pt, curves.png, log.jsonl and tensorboard/", folder)
