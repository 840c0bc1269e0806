"""Training of detectors and segmentors, for tools/train.py."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _classification import parameters
from _cli import check_writable, resume_path, start_folder
from _dense import (
    Session,
    build_loaders,
    build_model,
    build_runner,
    dense_environment,
    mistakes_named,
    read_dense,
    session,
)
from _dense_pictures import draw_dense_curves
from mmengine.config import Config
from mmengine.runner import Runner

from elsa.engine import (
    ConfigError,
    logger,
    peak_memory_gb,
    read_log,
    setup_logging,
    write_json,
    write_text,
)
from elsa.engine.dense import RunRecords
from elsa.models import read_checkpoint

MAY_CHANGE = ("work_dir", "launcher", "train_dataloader.num_workers", "train_dataloader.persistent_workers",
              "train_dataloader.batch_size", "val_dataloader", "test_dataloader", "custom_hooks", "model_wrapper_cfg",
              "train_cfg.save_steps", "train_cfg.val_interval", "model.backbone.pretrained")  # fmt: skip


def train(args: argparse.Namespace) -> None:
    """Trains, with the run's folder, signals and resuming of classification."""
    config = read_dense(args)
    check_writable(args.output)
    with session(args, config, trains=True) as here:
        content = find_resume(args, config)
        if content is not None:
            config.model.backbone.pretrained = None  # its weights are replaced anyway
        train_loader, val_loader = build_loaders(config, "train_dataloader", "val_dataloader")
        model = build_model(config)
        with mistakes_named():
            model.init_weights()
        prepare_folder(args, config, here, fresh=content is None)
        runner = build_runner(config, args.output, model, train_dataloader=train_loader, val_dataloader=val_loader)
        records = next(hook for hook in runner.hooks if isinstance(hook, RunRecords))
        records.resume = content
        tell_plan(config, here, model, train_loader, val_loader)
        began = time.perf_counter()
        with mistakes_named(lambda: runner.iter > (content or {"iter": 0})["iter"]):
            runner.train()
        if here.runtime.is_main:
            conclude(args.output, runner, records, time.perf_counter() - began, parameters(model))


def tell_plan(config: Config, here: Session, model: torch.nn.Module, train_loader: Any, val_loader: Any) -> None:
    runtime, accumulate = here.runtime, config.optim_wrapper.accumulative_counts
    report = getattr(getattr(model, "backbone", None), "load_report", None)
    if report is not None:
        logger.info("backbone from %s: %s", config.model.backbone.pretrained, report)
    logger.info("%s: %.2f M parameters, %s on %s", config.model.type, parameters(model) / 1e6,
                config.optim_wrapper.type, runtime.device)  # fmt: skip
    logger.info("global batch %d = %d processes × %d accumulated × %d images; learning rate %g is for the global batch",
                config.global_batch, runtime.world_size, accumulate, config.train_dataloader.batch_size,
                config.optim_wrapper.optimizer.lr)  # fmt: skip
    logger.info("%d training and %d validation images, %d steps an epoch",
                len(train_loader.dataset), len(val_loader.dataset), len(train_loader))  # fmt: skip


def find_resume(args: argparse.Namespace, config: Config) -> Mapping[str, Any] | None:
    """The checkpoint to continue from, or None for a fresh run.

    Raises:
        ConfigError: the folder holds a run and nothing says what to do with it, or the configuration is another.
    """
    path = resume_path(args)
    if path is None:
        return None
    content = read_checkpoint(path)
    if "optimizer" not in content or "iter" not in content:
        raise ConfigError(f"{path} has weights only; --resume needs a last.pt. To start from it, set "
                          "model.backbone.pretrained")  # fmt: skip
    before = Config.fromstring(content["config"]["text"], ".py")
    old, new = (dict(_flat(part.to_dict())) for part in (before, config))
    changed = [
        f"{name}: {old.get(name)!r} in the checkpoint, {new.get(name)!r} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name) and not name.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(f"{path} belongs to a run with another configuration: {'; '.join(changed[:5])}")
    return content


def _flat(node: Any, where: str = "") -> Any:
    if isinstance(node, (dict, list, tuple)) and node:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _flat(value, f"{where}.{key}" if where else str(key))
    else:
        yield where, list(node) if isinstance(node, tuple) else node


def prepare_folder(args: argparse.Namespace, config: Config, here: Session, fresh: bool) -> None:
    """The resolved configuration and the environment on disk before the first step."""
    if here.runtime.is_main:
        start_folder(args, fresh, dense_environment(here.runtime))
        write_text(args.output / "config.py", config.pretty_text)
    here.runtime.barrier()
    setup_logging(here.runtime, args.output / "train.log")


def conclude(folder: Path, runner: Runner, records: RunRecords, seconds: float, size: int) -> None:
    loop = runner.train_loop
    if records.history:
        draw_dense_curves(read_log(folder), folder / "curves.png", f"{runner.cfg.model.type}: {folder.name}")
    if loop.interrupted and loop.iter < loop.max_iters:
        logger.info("stopped after iteration %d and saved; go on with --resume auto", loop.iter)
        return
    summary = {
        "model": runner.cfg.model.type,
        "parameters": size,
        "iterations": loop.iter,
        "last": records.history[-1],
        "best": {records.metric: records.best, "iteration": records.best_iter},
        "unreadable": list(records.bad),
        "seconds_of_this_launch": round(seconds, 1),
        "peak_memory_gb": round(peak_memory_gb(loop.runtime.device), 2),
    }
    write_json(folder / "summary.json", summary)
    logger.info("finished: %s %.3f after the last iteration, best %.3f after iteration %d; %.0f s, %.2f GB",
                records.metric, records.history[-1][records.metric], records.best, records.best_iter, seconds,
                summary["peak_memory_gb"])  # fmt: skip
    logger.info("%s/ has best.pt, best.safetensors, last.pt, curves.png, log.jsonl and tensorboard/", folder)
