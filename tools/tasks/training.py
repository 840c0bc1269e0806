"""How a training goes, the same for all tasks: recipe → plan → task → trainer → run folder."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn

from elsa.core import ConfigError, keep_freed_memory, logger
from elsa.engine import (
    Evaluation,
    Logbook,
    Parallel,
    Plan,
    Recipe,
    RunFolder,
    Runtime,
    Step,
    StopRequest,
    Trainer,
    TrainState,
    TrainStep,
    choose_parallel,
    describe_environment,
)
from elsa.engine.checkpoint import FORMAT, WholeCheckpoints
from elsa.engine.compiling import check_compiler, compile_errors, compile_parts, parts_to_compile
from elsa.engine.profile import Profile, parse_steps
from elsa.engine.shards import ShardedCheckpoints
from elsa.engine.trackers import open_trackers
from elsa.kernels import backend_info

from .conclusion import conclude, described
from .parts import Training


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
        parallel = choose_parallel(training.options.parallel, runtime)
        state, spread = _state(training, parallel)
        if content is not None:
            folder.check_data(content, training.data)
            folder.restore(state, content, parallel)
        _check_same(training, state, args.output, runtime)
        profile = _profile(args, training.plan, state.step, runtime)
        step = training.make_step(spread, state, parallel)
        if training.options.compile:
            compile_training(training, step, parallel, runtime)
        counted = state.model if state.ema is None or not training.evaluate_ema else state.ema.module

        folder.open(recipe, training.plan, environment(runtime), fresh=content is None)
        logger.info("%s, %s on %s", described(training.arch, state.model), training.precision, runtime.device)
        for line in training.plan.lines():
            logger.info("%s", line)
        logbook = _open_logbook(training, state, recipe, args.output, runtime, fresh=content is None)
        checkpoints = (ShardedCheckpoints(args.output, runtime, parallel) if parallel.divides
                       else WholeCheckpoints(args.output, runtime))  # fmt: skip
        trainer = Trainer(
            training.plan, runtime, state, step, training.schedule, training.batches,
            evaluate=lambda: _evaluated(training, counted, state, logbook), evaluated=counted, metric=training.metric,
            logbook=logbook, about=_about(training, recipe), checkpoints=checkpoints,
            max_skipped=training.options.max_skipped, early_stop=training.options.early_stop,
            gallery=training.gallery, profile=profile,
        )  # fmt: skip
        runtime.advise(trainer.last_good)
        if runtime.device.type == "cpu":
            keep_freed_memory()
        began = time.perf_counter()
        with StopRequest() as stop, compile_errors():
            finished = trainer.fit(stop)
        if runtime.is_main:
            conclude(training, args.output, state, finished, time.perf_counter() - began, runtime, logbook, recipe)
        logbook.close()


def _state(training: Training, parallel: Parallel) -> tuple[TrainState, nn.Module]:
    """What the run carries, and the model as a step calls it, spread over the processes."""
    model, decay = training.model, training.options.ema_decay
    average = None if decay is None else ModelEmaV3(model, decay=decay, foreach=not parallel.divides)
    spread = parallel.spread(model, training.optimizer, average and average.module)
    scaler = training.precision.grad_scaler(model, training.optimizer)
    return TrainState(model, training.optimizer, scaler, average, training.schedule), spread


def _check_same(training: Training, state: TrainState, output: Path, runtime: Runtime) -> None:
    """Raises ConfigError where the processes go on from different steps, or see different data."""
    runtime.check_same({"the step to go on from": state.step}, f"is --output {output} on a disk that all share?")
    facts = {**training.data, "validation images": training.plan.val_images}
    runtime.check_same({f"training data, {name}": value for name, value in facts.items()}, "is the data the same?")


def _open_logbook(
    training: Training, state: TrainState, recipe: Recipe, output: Path, runtime: Runtime, fresh: bool
) -> Logbook:
    options, evaluations = training.options, [record["step"] for record in state.history]
    trackers = open_trackers(options.trackers if runtime.is_main else (), output, recipe.values, fresh)
    total = training.plan.total_steps
    return Logbook(output, runtime, total, state.step, options.tensorboard, evaluations, trackers)


def _about(training: Training, recipe: Recipe) -> dict[str, Any]:
    """The entries of a checkpoint that do not change."""
    return {"format": FORMAT, "task": training.task, "arch": training.arch, "config": dict(recipe.values),
            "data": training.data, "global_batch": training.plan.global_batch, "metric": training.metric,
            "classes": list(training.classes), **training.meta}  # fmt: skip


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
