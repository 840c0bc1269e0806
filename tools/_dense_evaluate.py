"""Evaluation and prediction with detectors and segmentors, for the tools of these names."""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from _classification import parameters
from _cli import check_writable, find_images, make_folder
from _dense import build_loaders, build_model, build_runner, dense_environment, mistakes_named, read_dense, session
from _dense_pictures import MapPredictions, ObjectPredictions, PicturesOfTest
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from tqdm import tqdm

from elsa.engine import ConfigError, logger, sha256, write_json
from elsa.models import load_pretrained, read_checkpoint

COCO_COLUMNS = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l",
                "AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000"]  # fmt: skip


def evaluate(args: argparse.Namespace) -> None:
    """All columns of the data set's metric, of a checkpoint of ours or of mmdet's and mmseg's."""
    config = read_dense(args)
    check_writable(args.output)
    ask_for_all_columns(config, args.per_class)
    with session(args, config) as here:
        (loader,) = build_loaders(config, "test_dataloader")
        model = build_model(config)
        content = load_checkpoint(model, args, loader.dataset.metainfo["classes"])
        pictures = PicturesOfTest(args.pictures, loader.dataset.metainfo)
        metrics, began = {}, time.perf_counter()
        if args.scales != "multi" or "tta_model" not in config:
            runner = build_runner(config, args.output, model, test_dataloader=loader)
            runner.register_hook(pictures)
            with mistakes_named():
                metrics.update(name_metrics(runner.test(), config))
        if args.scales != "single" and "tta_model" in config:
            metrics.update(evaluate_scales(config, args, model))
        seconds = time.perf_counter() - began
        if not here.runtime.is_main:
            return
        if not args.per_class:
            metrics = {name: value for name, value in metrics.items() if "/IoU/" not in name}
        write_json(args.output / "results.json", {
            "metrics": metrics,
            "count": len(loader.dataset),
            "model": config.model.type,
            "parameters": parameters(model),
            "checkpoint": {"path": str(args.checkpoint), "sha256": sha256(args.checkpoint), "meta": about(content)},
            "images_per_s": round(len(loader.dataset) / seconds, 2),
            "config": config.pretty_text,
            "environment": dense_environment(here.runtime),
        })  # fmt: skip
        pictures.save(args.output / "predictions.png", f"{config.model.type}: ground truth and prediction")
        tell_metrics(metrics, args, len(loader.dataset), seconds)


def evaluate_scales(config: Config, args: argparse.Namespace, model: torch.nn.Module) -> dict[str, float | None]:
    """The scales and flips of ``tta_pipeline``, their class probabilities averaged: how the paper evaluates."""
    config = copy.deepcopy(config)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    flips = any(step.get("prob") == 1 for choice in config.tta_pipeline[-1].transforms for step in choice)
    config.test_evaluator.prefix = "multi_scale_flip" if flips else "multi_scale"
    (loader,) = build_loaders(config, "test_dataloader")
    with mistakes_named():
        averaged = MODELS.build({**config.tta_model, "module": model})
        return name_metrics(build_runner(config, args.output, averaged, test_dataloader=loader).test(), config)


def ask_for_all_columns(config: Config, per_class: bool) -> None:
    """Has boxes and masks evaluated each by a metric of its own: mmdet names the classes of both alike."""
    if (metric := config.test_evaluator).type == "CocoMetric":
        kinds = metric.metric if isinstance(metric.metric, list) else [metric.metric]
        columns = dict(metric_items=COCO_COLUMNS, classwise=per_class)
        config.test_evaluator = [{**metric, **columns, "metric": kind, "prefix": kind} for kind in kinds]


def name_metrics(metrics: Mapping[str, float], config: Config) -> dict[str, float | None]:
    """{"bbox/bbox_mAP": …, "bbox/cat_precision": …} → {"coco/bbox_mAP": …, "coco/bbox_AP/cat": …}; NaN becomes None.

    mmdet gives no numbers at all where nothing was found: these are zeros.
    """
    kinds = [part["prefix"] for part in config.test_evaluator] if isinstance(config.test_evaluator, list) else []
    named = {f"coco/{kind}_{column}": 0.0 for kind in kinds for column in COCO_COLUMNS}
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
        logger.info("%-24s %s", name.removeprefix("coco/"), "none in the data" if value is None else f"{value:.3f}")
    logger.info("%-24s %d in %.1f s", "images", count, seconds)
    logger.info("%-24s %s", "results", args.output / "results.json")


def predict(args: argparse.Namespace) -> None:
    """Objects or label maps of images of one's own: a picture each, and all of it as JSON."""
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
        kind = MapPredictions if config.default_scope == "mmseg" else ObjectPredictions
        found = kind(config, classes, args)
        for path in tqdm(paths, desc="predicting", unit="image", disable=None, leave=False):
            found.add(model, path)
        write_json(args.output / "predictions.json", found.as_json())
    logger.info("%d of %d images: %s; pictures and predictions.json in %s",
                len(found.images), len(paths), found.summary(), args.output)  # fmt: skip


def known_classes(config: Config) -> list[str]:
    """Class names where the checkpoint has none: the configuration's, else those of its data set's type."""
    dataset = config.test_dataloader.dataset
    names = dataset.get("metainfo", {}).get("classes") or DATASETS.get(dataset.type).METAINFO["classes"]
    return list(names)
