"""Training, evaluation and prediction of detectors and segmentors, for the tools of these names."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _classification import environment, parameters
from _cli import check_writable, find_images, make_folder, resume_path, start_folder
from _dense import Session, build_loaders, build_model, build_runner, mistakes_named, read_dense, session
from _dense_pictures import PicturesOfTest, Predictions, draw_dense_curves
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from tqdm import tqdm

from elsa.engine import (
    ConfigError,
    logger,
    peak_memory_gb,
    read_log,
    setup_logging,
    sha256,
    write_json,
    write_text,
)
from elsa.engine.dense import RunRecords
from elsa.models import load_pretrained, read_checkpoint

COCO_COLUMNS = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l",
                "AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000"]  # fmt: skip
MAY_CHANGE = ("work_dir", "launcher", "train_dataloader.num_workers", "train_dataloader.persistent_workers",
              "train_dataloader.batch_size", "val_dataloader", "test_dataloader", "custom_hooks", "model_wrapper_cfg",
              "train_cfg.save_steps", "train_cfg.val_interval", "model.backbone.pretrained")  # fmt: skip


def train(args: argparse.Namespace) -> None:
    """Trains, with the run's folder, signals and resuming of classification."""
    config = read_dense(args)
    check_writable(args.output)
    with session(args, config) as here:
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
        with mistakes_named():
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
        start_folder(args, fresh, environment(here.runtime))
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


def evaluate(args: argparse.Namespace) -> None:
    """All columns of the data set's metric, of a checkpoint of ours or of mmdet's and mmseg's."""
    config = read_dense(args)
    check_writable(args.output)
    ask_for_all_columns(config, args.per_class)
    with session(args, config) as here:
        (loader,) = build_loaders(config, "test_dataloader")
        model = build_model(config)
        content = load_checkpoint(model, args, loader.dataset.metainfo["classes"])
        runner = build_runner(config, args.output, model, test_dataloader=loader)
        pictures = PicturesOfTest(args.pictures, loader.dataset.metainfo)
        runner.register_hook(pictures)
        began = time.perf_counter()
        with mistakes_named():
            metrics = name_metrics(runner.test())
        seconds = time.perf_counter() - began
        if not here.runtime.is_main:
            return
        write_json(args.output / "results.json", {
            "metrics": metrics,
            "count": len(loader.dataset),
            "model": config.model.type,
            "parameters": parameters(model),
            "checkpoint": {"path": str(args.checkpoint), "sha256": sha256(args.checkpoint), "meta": about(content)},
            "images_per_s": round(len(loader.dataset) / seconds, 2),
            "config": config.pretty_text,
            "environment": environment(here.runtime),
        })  # fmt: skip
        pictures.save(args.output / "predictions.png", f"{config.model.type}: ground truth and prediction")
        tell_metrics(metrics, args, len(loader.dataset), seconds)


def ask_for_all_columns(config: Config, per_class: bool) -> None:
    """Has boxes and masks evaluated each by a metric of its own: mmdet names the classes of both alike."""
    if (metric := config.test_evaluator).type == "CocoMetric":
        kinds = metric.metric if isinstance(metric.metric, list) else [metric.metric]
        columns = dict(metric_items=COCO_COLUMNS, classwise=per_class)
        config.test_evaluator = [{**metric, **columns, "metric": kind, "prefix": kind} for kind in kinds]


def name_metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """{"bbox/bbox_mAP": …, "bbox/cat_precision": …} → {"coco/bbox_mAP": …, "coco/bbox_AP/cat": …}; NaN becomes None."""
    named = {}
    for key, value in metrics.items():
        kind, _, name = key.partition("/")
        if kind in ("bbox", "segm"):
            is_class = name.endswith("_precision")
            key = f"coco/{kind}_AP/{name.removesuffix('_precision')}" if is_class else f"coco/{name}"
        named[key] = None if math.isnan(value) else value
    return named


def load_checkpoint(model: torch.nn.Module, args: argparse.Namespace, classes: Any) -> Mapping[str, Any]:
    """Loads every tensor or refuses; the classes of the file, where it names them, have to be the data's."""
    content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
    named = class_names(content)
    if named and tuple(named) != tuple(classes):
        odd = [
            f"{mine} in the file, {theirs} in the data"
            for mine, theirs in zip(named, classes, strict=False)
            if mine != theirs
        ]
        raise ConfigError(f"{args.checkpoint} has {len(named)} classes, the data {len(classes)}: {'; '.join(odd[:3])}")
    logger.info("%s: %s", args.checkpoint, load_pretrained(model, content))
    return content


def class_names(content: Mapping[str, Any]) -> list[str]:
    """The classes that a checkpoint names: ours, mmdet 2's and mmseg 0's, mmengine's; empty where it names none."""
    meta = content.get("meta") or {}
    return list(content.get("classes") or meta.get("CLASSES") or (meta.get("dataset_meta") or {}).get("classes") or [])


def about(content: Mapping[str, Any]) -> dict[str, Any]:
    """The short facts that a checkpoint tells of itself."""
    meta = content.get("meta") or content
    return {name: value for name, value in meta.items() if isinstance(value, (int, float)) or
            (isinstance(value, str) and len(value) < 100)}  # fmt: skip


def tell_metrics(metrics: Mapping[str, float], args: argparse.Namespace, count: int, seconds: float) -> None:
    for name, value in metrics.items():
        logger.info("%-24s %s", name.partition("/")[2], "none in the data" if value is None else f"{value:.3f}")
    logger.info("%-24s %d in %.1f s", "images", count, seconds)
    logger.info("%-24s %s", "results", args.output / "results.json")


def predict(args: argparse.Namespace) -> None:
    """Boxes and masks of images of one's own: a picture each, and all in COCO's result format."""
    config = read_dense(args)
    check_writable(args.output)
    if not 0 <= args.threshold <= 1:
        raise ConfigError(f"--threshold must be between 0 and 1, got {args.threshold}")
    paths = find_images(args.images)
    with session(args, config) as here:
        content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
        model = build_model(config)
        logger.info("%s: %s", args.checkpoint, load_pretrained(model, content))
        classes = class_names(content) or known_classes(config)
        model.to(here.runtime.device).eval()
        make_folder(args.output)
        found = Predictions(config, classes, args)
        for path in tqdm(paths, desc="predicting", unit="image", disable=None, leave=False):
            found.add(model, path)
        write_json(args.output / "predictions.json", found.as_coco())
    logger.info("%d of %d images: %d objects of at least %.2f; pictures and predictions.json in %s",
                len(found.images), len(paths), found.drawn, args.threshold, args.output)  # fmt: skip


def known_classes(config: Config) -> list[str]:
    """Class names where the checkpoint has none: the configuration's, else those of its data set's type."""
    dataset = config.test_dataloader.dataset
    names = dataset.get("metainfo", {}).get("classes") or DATASETS.get(dataset.type).METAINFO["classes"]
    return list(names)
