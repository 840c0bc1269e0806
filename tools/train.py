#!/usr/bin/env python
"""Train the model of a configuration.

One process: python tools/train.py CONFIG --output DIR. Several: torchrun --nproc_per_node=N tools/train.py CONFIG …
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from _classification import build_model, environment, open_data, parameters, token_grid, weights_that_count
from _cli import check_writable, parser, read, resume_path, run, start_folder
from _pictures import draw_curves
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from elsa.data import Batch, build_mix, build_mix_token, eval_loader, token_targets, train_loader
from elsa.data.loaders import micro_batch
from elsa.engine import (
    ConfigError,
    Logbook,
    Precision,
    Runtime,
    StopRequest,
    TokenLabelLoss,
    TokenLabelStep,
    Trainer,
    TrainState,
    TrainStep,
    build_optimizer,
    build_schedule,
    choose_precision,
    differences,
    distributed,
    dump,
    evaluate,
    logger,
    peak_memory_gb,
    read_log,
    setup_logging,
    write_json,
    write_text,
)
from elsa.models import read_checkpoint


def main() -> None:
    arguments = parser(__doc__, checkpoint=False)
    arguments.add_argument("--output", type=Path, metavar="DIR", help="the run's folder")
    arguments.add_argument(
        "--resume", metavar="auto|PATH", help="auto: continue from DIR/last.pt where there is one; or from a checkpoint"
    )
    arguments.add_argument("--overwrite", action="store_true", help="replace the run that DIR holds")
    args, config = read(arguments)
    if args.output is None and not args.print_config:
        raise ConfigError("--output DIR is needed: where checkpoints and logs go")
    if config is None:
        from _dense_train import train as train_dense

        train_dense(args)
        return
    with distributed(args.device) as runtime:
        setup_logging(runtime)
        train(config, args, runtime)


def train(config: CfgNode, args: argparse.Namespace, runtime: Runtime) -> None:
    """Puts a run together, trains, and leaves curves and a summary; everything is checked before DIR is written."""
    check_writable(args.output)
    resumed = find_resume(config, args)
    precision = choose_precision(config, runtime.device)
    train_source, val_source = open_data(config, runtime, "train", "val")
    batches = train_loader(config, train_source, runtime.rank, runtime.world_size)
    held_out = eval_loader(config, val_source, runtime.rank, runtime.world_size)
    micro = micro_batch(config, runtime.world_size)

    model = build_model(config, pretrained=resumed is None).to(runtime.device)
    optimizer = build_optimizer(model, config)
    schedule, epochs = build_schedule(optimizer, config, batches.steps_per_epoch)
    decay = config.TRAIN.EMA_DECAY
    state = TrainState(
        model=model,
        optimizer=optimizer,
        scaler=precision.grad_scaler(),
        ema=None if decay is None else ModelEmaV3(model, decay=decay),
    )
    if resumed is not None:
        restore(state, *resumed)
    if runtime.sum([float(state.step)])[0] != state.step * runtime.world_size:
        raise ConfigError(f"processes would continue from different steps: is --output {args.output} on a shared disk?")
    step = build_step(config, wrap(model, config, runtime), state, precision, micro)
    counted = weights_that_count(config, model, state.ema)

    prepare_folder(config, args, runtime, fresh=resumed is None)
    logger.info(
        "%s: %.2f M parameters, %s on %s", config.MODEL.NAME, parameters(model) / 1e6, precision, runtime.device
    )
    logger.info("global batch %d = %d processes × %d accumulated × %d images; learning rate %g is for the global batch",
                config.DATA.BATCH, runtime.world_size, config.TRAIN.ACCUM, micro, config.TRAIN.LR)  # fmt: skip
    logger.info("%d epochs of %d steps; %d training and %d validation images", epochs, batches.steps_per_epoch,
                len(train_source), len(val_source))  # fmt: skip
    logbook = Logbook(args.output, runtime, epochs * batches.steps_per_epoch, state.step, config.LOG.TENSORBOARD)
    trainer = Trainer(
        config, args.output, runtime, state, step, schedule, epochs, batches,
        evaluate=lambda: evaluate(counted, held_out, held_out.total, runtime, precision),
        evaluated=counted, logbook=logbook, extra={"classes": getattr(train_source, "classes", [])},
    )  # fmt: skip
    began = time.perf_counter()
    with StopRequest() as stop:
        finished = trainer.fit(stop)
    logbook.close()
    if runtime.is_main:
        conclude(config, args.output, state, finished, time.perf_counter() - began, runtime)


def build_step(config: CfgNode, wrapped: nn.Module, state: TrainState, precision: Precision, micro: int) -> TrainStep:
    """The optimization step: token labeling where TOKENS says so, else mixup, cutmix and cross entropy as AUG says.

    Args:
        wrapped: the model as ``wrap`` made it. micro: images per process and micro-batch.
    """
    common = dict(source=state.model, scaler=state.scaler, clip_grad=config.TRAIN.CLIP_GRAD, ema=state.ema)
    tokens, smoothing = config.TOKENS, config.AUG.SMOOTHING
    if not tokens.ENABLED:
        mix = build_mix(config, micro)
        criterion = nn.CrossEntropyLoss(label_smoothing=0.0 if mix else smoothing)
        return TrainStep(wrapped, state.optimizer, criterion, precision, mix=mix, **common)

    grid, classes = token_grid(config, state.model), config.MODEL.NUM_CLASSES

    def targets(batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
        labels = None if batch.tokens is None else batch.tokens.to(device)
        return token_targets(labels, batch.targets.to(device, non_blocking=True), classes, grid, smoothing)

    return TokenLabelStep(
        wrapped,
        state.optimizer,
        TokenLabelLoss(tokens.CLASS_WEIGHT, tokens.PATCH_WEIGHT, tokens.GROUND_TRUTH),
        precision,
        token_targets=targets,
        draw_box=build_mix_token(config, micro, grid),
        **common,
    )


def wrap(model: nn.Module, config: CfgNode, runtime: Runtime) -> nn.Module:
    """The module that a step calls: distributed and compiled where asked for."""
    if runtime.world_size > 1:
        devices = [runtime.device.index] if runtime.device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    return torch.compile(model) if config.TRAIN.COMPILE else model


def find_resume(config: CfgNode, args: argparse.Namespace) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to continue from and its content, or None for a fresh run.

    Raises:
        ConfigError: OUTPUT holds a run and nothing says what to do with it, or the configuration is another.
    """
    path = resume_path(args)
    if path is None:
        return None
    content = read_checkpoint(path)
    if not isinstance(content.get("config"), dict):
        raise ConfigError(f"{path} has weights only; --resume needs a last.pt. To start from it, set MODEL.PRETRAINED")
    if changed := differences(content["config"], config):
        raise ConfigError(f"{path} belongs to a run with another configuration: {'; '.join(changed)}")
    return path, content


def restore(state: TrainState, path: Path, content: dict[str, Any]) -> None:
    try:
        state.load_state_dict(content)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} does not fit this run: {reason}") from error
    logger.info("resumed %s after step %d, in epoch %d", path, state.step, state.epoch + 1)


def prepare_folder(config: CfgNode, args: argparse.Namespace, runtime: Runtime, fresh: bool) -> None:
    """Writes the resolved configuration and the environment of this launch before the first step."""
    if runtime.is_main:
        start_folder(args, fresh, environment(runtime))
        write_text(args.output / "config.yaml", dump(config))
    runtime.barrier()
    setup_logging(runtime, args.output / "train.log")


def conclude(
    config: CfgNode, folder: Path, state: TrainState, finished: bool, seconds: float, runtime: Runtime
) -> None:
    """Curves, a summary for machines, and the last lines for people."""
    if state.history:
        draw_curves(read_log(folder), folder / "curves.png", f"{config.MODEL.NAME}: {folder.name}")
    if not finished:
        logger.info("stopped after step %d and saved; go on with --resume auto", state.step)
        return
    last = state.history[-1]
    summary = {
        "model": config.MODEL.NAME,
        "parameters": parameters(state.model),
        "epochs": state.epoch,
        "last": last,
        "best": {"top1": state.best, "epoch": state.best_epoch + 1},
        "seconds_of_this_launch": round(seconds, 1),
        "peak_memory_gb": round(peak_memory_gb(runtime.device), 2),
    }
    write_json(folder / "summary.json", summary)
    logger.info("finished: top-1 %.2f %% after the last epoch, best %.2f %% in epoch %d; %.0f s, %.2f GB",
                last["top1"], state.best, state.best_epoch + 1, seconds, summary["peak_memory_gb"])  # fmt: skip
    logger.info("%s/ has best.pt, best.safetensors, last.pt, curves.png, log.jsonl and tensorboard/", folder)


if __name__ == "__main__":
    run(main)
