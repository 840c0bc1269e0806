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

from elsa.core import ConfigError, logger, write_json
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
    TrainStep,
    choose_parallel,
    describe_environment,
    peak_memory_gb,
    read_log,
)
from elsa.engine.checkpoint import FORMAT, WholeCheckpoints
from elsa.engine.compiling import check_compiler, compile_errors, compile_parts, parts_to_compile
from elsa.engine.profile import Profile, parse_steps
from elsa.engine.shards import ShardedCheckpoints
from elsa.engine.trackers import open_trackers
from elsa.kernels import backend_info

from .gallery import Gallery
from .pictures import draw_curves

# Beginnings of names in a recipe of detection or segmentation that say where data and pictures come from.
NO_HYPER_PARAMETERS = ("custom_imports", "train_dataloader", "val_", "test_", "tta_", "visualizer")


@dataclass
class Training:
    """What a task gives to be trained.

    Attributes:
        task, arch: names for people and for the checkpoint.
        make_step: the model as it is called (distributed), the state, how it is spread → the step.
        evaluate: a module with the weights that count → the evaluation.
        metric: what the best checkpoint has most of; curves: beginnings of the names that curves.png draws.
        classes: class names, in the order of the labels; meta: further entries of the checkpoint.
        evaluate_ema: whether the average of the weights counts where one is kept.
        gallery: draws what is shown beside the numbers.
        compiled: a network whose images have any size → its parts that TRAIN.COMPILE compiles; None: of one size.
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
    gallery: Gallery | None = None
    compiled: Callable[[nn.Module], list[nn.Module]] | None = None

    @property
    def data(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        return {"images": self.plan.train_images, "classes": list(self.classes)}


def train(
    build: Callable[[Recipe, Runtime, Mapping[str, Any] | None, bool], Training],
    recipe: Recipe,
    args: argparse.Namespace,
    runtime: Runtime,
) -> None:
    """Puts a run together, trains, and leaves curves and a summary; everything is checked before DIR is written.

    Args:
        build: recipe, this process, the checkpoint to go on from (such a run needs no pretrained file), whether a
            pretrained file may run code → its parts.
    """
    with RunFolder(args.output, runtime, args.resume, args.overwrite).claimed() as folder:
        content = folder.find(recipe)
        training = build(recipe, runtime, content, args.trust_checkpoint)
        model, options = training.model, training.options
        parallel = choose_parallel(options.parallel, runtime)
        average = None if options.ema_decay is None else ModelEmaV3(model, decay=options.ema_decay, foreach=not parallel.divides)
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
        profile = _profile(args, training.plan, state.step, runtime)
        step = training.make_step(spread, state, parallel)
        if options.compile:
            compile_training(training, step, parallel, runtime)
        counted = model if state.ema is None or not training.evaluate_ema else state.ema.module

        folder.open(recipe, training.plan, environment(runtime), fresh=content is None)
        logger.info("%s: %.2f M parameters, %s on %s", training.arch, parameters(model) / 1e6, training.precision,
                    runtime.device)  # fmt: skip
        for line in training.plan.lines():
            logger.info("%s", line)
        steps = [record["step"] for record in state.history]
        asked, total = options.trackers if runtime.is_main else (), training.plan.total_steps
        trackers = open_trackers(asked, args.output, recipe.values, content is None)
        logbook = Logbook(args.output, runtime, total, state.step, options.tensorboard, steps, trackers)
        about = {"format": FORMAT, "task": training.task, "arch": training.arch, "config": dict(recipe.values),
                 "data": training.data, "global_batch": training.plan.global_batch, "metric": training.metric,
                 "classes": list(training.classes), **training.meta}  # fmt: skip
        checkpoints = (ShardedCheckpoints(args.output, runtime, parallel) if parallel.divides
                       else WholeCheckpoints(args.output, runtime))  # fmt: skip
        trainer = Trainer(
            training.plan, runtime, state, step, training.schedule, training.batches,
            evaluate=lambda: _evaluated(training, counted, state, logbook), evaluated=counted, metric=training.metric,
            logbook=logbook, about=about, checkpoints=checkpoints, max_skipped=options.max_skipped,
            gallery=training.gallery, profile=profile,
        )  # fmt: skip
        runtime.advise(trainer.last_good)
        began = time.perf_counter()
        with StopRequest() as stop, compile_errors():
            finished = trainer.fit(stop)
        if runtime.is_main:
            _conclude(training, args.output, state, finished, time.perf_counter() - began, runtime, logbook, recipe)
        logbook.close()


def compile_training(training: Training, step: Step, parallel: Parallel, runtime: Runtime) -> None:
    """TRAIN.COMPILE: the network that is trained, the average that is evaluated, and a loss that is apart."""
    check_compiler(runtime.device)
    for network in [step.source] if step.ema is None else [step.source, step.ema.module]:
        if training.compiled is not None:
            compile_parts(training.compiled(network), dynamic=True)
        else:
            compile_parts(parts_to_compile(network, parallel.divides, runtime.world_size))
    if isinstance(step, TrainStep):
        compile_parts([step.criterion])


def _profile(args: argparse.Namespace, plan: Plan, done: int, runtime: Runtime) -> Profile | None:
    """That of --profile, in the processes that it asks for. A run that goes on, perhaps by itself after a fault, is not
    refused for steps that it has no more."""
    if args.profile is None:
        return None
    try:
        first, last, everywhere = parse_steps(args.profile, done, plan.total_steps, plan.evaluate_every)
    except ConfigError as error:
        if not done:
            raise
        logger.warning("no profile: %s", error)
        return None
    wanted = runtime.is_main or everywhere
    return Profile(args.output, first, last, runtime.rank, runtime.device) if wanted else None


def _evaluated(training: Training, counted: nn.Module, state: TrainState, logbook: Logbook) -> Evaluation:
    """An evaluation, with pictures of predictions where they are asked for."""
    result = training.evaluate(counted)
    if training.gallery is not None and logbook.writer is not None:
        picture = training.gallery.predictions(counted)
        if picture is not None:
            logbook.show("eval/predictions", state.step, picture)
    return result


def environment(runtime: Runtime) -> dict[str, Any]:
    """What a run says about the machine, and which implementations of the operator it had."""
    return {**describe_environment(runtime), "operator": backend_info()}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _conclude(
    training: Training,
    folder: Path,
    state: TrainState,
    finished: bool,
    seconds: float,
    runtime: Runtime,
    logbook: Logbook,
    recipe: Recipe,
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
    hyper = {name: value for name, value in recipe.values.items() if not name.startswith(NO_HYPER_PARAMETERS)}
    logbook.conclude(hyper, summary)
    logger.info("finished: %s %.4g in the end, best %.4g after step %d (epoch %d); %.0f s, %.2f GB", training.metric,
                last[training.metric], state.best, state.best_step, best_epoch, seconds,
                summary["peak_memory_gb"])  # fmt: skip
    logger.info("%s/ has best.pt, best.safetensors, last.pt, curves.png, log.jsonl and tensorboard/", folder)
