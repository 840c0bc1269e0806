"""Evaluation of a classifier: accuracy of all and of each class, confusions, calibration, predictions as a table."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from elsa.core import ConfigError, check_writable, did_you_mean, logger, make_folder, sha256, write_json
from elsa.data import CROPS, Source, eval_loader
from elsa.engine import (
    BINS,
    FLIPS,
    AveragedViews,
    Calibration,
    ClassCounts,
    Metrics,
    Predictions,
    Recipe,
    Runtime,
    calibrate,
    choose_precision,
    count_classes,
    evaluate,
    mistakes_first,
)
from elsa.models import LoadReport, load_pretrained, read_checkpoint

from .checkpoints import check_belongs, class_names
from .class_pictures import draw_calibration, draw_confusion
from .class_tables import (
    calibration_record,
    check_table,
    class_records,
    confusion_lines,
    distinct_names,
    write_predictions,
)
from .command import Option
from .conclusion import parameters
from .networks import build_model, open_data
from .pictures import draw_predictions, told
from .training import environment

FIVE_CROP = "five-crop"
VIEWS = (*FLIPS, FIVE_CROP)
OPTIONS: list[Option] = [
    (
        "--tta",
        dict(
            metavar="VIEWS",
            help="average the probabilities of several views of each image: flip, flip-vertical, five-crop (centre and "
            "corners), or some of them with commas: flip,five-crop are ten views",
        ),
    ),
    (
        "--predictions",
        dict(type=Path, metavar="FILE.csv", help="a table with the five most probable classes of each image"),
    ),
]


@dataclass(frozen=True)
class Findings:
    """Of an evaluation.

    Attributes:
        names: of the classes, no two alike.
        views: of VIEWS, what the images were shown as.
    """

    metrics: Metrics
    predictions: Predictions
    counts: ClassCounts
    calibration: Calibration
    names: list[str]
    views: list[str]
    seconds: float


def read_views(text: str | None) -> list[str]:
    """The views that ``--tta`` names.

    Raises:
        ConfigError: a name that is none, or that comes twice.
    """
    views = [] if text is None else [name.strip() for name in text.split(",")]
    for name in views:
        if name not in VIEWS:
            raise ConfigError(f"--tta {name or repr(text)} must be {', '.join(VIEWS)}{did_you_mean(name, VIEWS)}")
        if views.count(name) > 1:
            raise ConfigError(f"--tta {text} names {name} twice")
    return views


def view_count(views: Sequence[str]) -> int:
    return 2 ** sum(name in FLIPS for name in views) * (CROPS if FIVE_CROP in views else 1)


def evaluate_checkpoint(recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
    """Metrics, classes and calibration of a checkpoint over the validation split, as results.json and as pictures."""
    config, views = recipe.config, read_views(args.tta)
    check_writable(args.output)
    check_table(args.predictions)
    precision = choose_precision(config, runtime.device)
    (source,) = open_data(config, runtime, "val")
    if args.pictures and isinstance(source, IterableDataset):
        raise ConfigError(f"--pictures needs random access, which DATA.DATASET {config.DATA.DATASET} has not")
    loader = eval_loader(config, source, runtime.rank, runtime.world_size, FIVE_CROP in views)
    model = build_model(config)
    content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
    report = load_pretrained(model, content, weights=config.EVAL.WEIGHTS)
    logger.info("%s: %s", args.checkpoint, report)
    check_belongs(args.checkpoint, content, source)

    began = time.perf_counter()
    progress = loader.with_progress() if runtime.is_main else loader
    seen = AveragedViews(model, [name for name in views if name in FLIPS]) if views else model
    metrics = evaluate(seen.to(runtime.device), progress, loader.total, runtime, precision, loader.bad, True)
    seconds = time.perf_counter() - began
    if not runtime.is_main:
        return
    predictions = metrics.predictions
    assert predictions is not None
    names = distinct_names(getattr(source, "classes", None) or class_names(content), config.MODEL.NUM_CLASSES)
    counts = count_classes(predictions, len(names))
    found = Findings(metrics, predictions, counts, calibrate(predictions), names, views, seconds)
    make_folder(args.output)
    write_json(args.output / "results.json", results(recipe, args, report, found, runtime, parameters(model)))
    draw(config, args, found, source)
    if args.predictions:
        make_folder(args.predictions.parent, "--predictions")
        write_predictions(args.predictions, predictions, source, names)
    tell(config, args, found)


def results(
    recipe: Recipe, args: argparse.Namespace, report: LoadReport, found: Findings, runtime: Runtime, size: int
) -> dict[str, Any]:
    """What results.json holds.

    Args:
        size: parameters of the model.
    """
    metrics, counts = found.metrics, found.counts
    return {
        "metrics": metrics.as_dict(),
        "count": metrics.count,
        "skipped": list(metrics.bad),
        "tta": {"of": found.views, "views": view_count(found.views)} if found.views else None,
        "model": recipe.config.MODEL.NAME,
        "parameters": size,
        "checkpoint": {
            "path": str(args.checkpoint),
            "sha256": sha256(args.checkpoint),
            "weights": report.entry or "state dict",
        },
        "precision": str(choose_precision(recipe.config, runtime.device)),
        "images_per_s": round(metrics.count / found.seconds, 1),
        "mean_class_accuracy": float(np.nanmean(counts.accuracy)),
        "calibration": calibration_record(found.calibration),
        "classes": class_records(counts, found.names),
        "confusion": {"columns": ["true", "predicted", "images"], "cells": counts.cells.tolist()},
        "config": dict(recipe.values),
        "environment": environment(runtime),
    }


def draw(config: CfgNode, args: argparse.Namespace, found: Findings, source: Source | IterableDataset) -> None:
    metrics, name = found.metrics, config.MODEL.NAME
    accuracy = f"{name}: top-1 {metrics.top1:.2f} % of {metrics.count} images"
    draw_confusion(found.counts, found.names, args.output / "confusion.png", accuracy)
    error = f"{name}: ECE {100 * found.calibration.ece:.2f} %, {BINS} bins, {metrics.count} images"
    draw_calibration(found.calibration, args.output / "calibration.png", error)
    if args.pictures:
        rows = mistakes_first(found.predictions.rows())[: args.pictures]
        title = f"{name}: top-1 {metrics.top1:.2f} %, mistakes first"
        draw_predictions(source, rows, args.output / "predictions.png", title, metrics.count)


def tell(config: CfgNode, args: argparse.Namespace, found: Findings) -> None:
    metrics, counts = found.metrics, found.counts
    rows = [
        ("model", config.MODEL.NAME),
        ("checkpoint", args.checkpoint),
        ("images", f"{metrics.count} ({len(metrics.bad)} unreadable) in {found.seconds:.1f} s"),
        ("top-1", f"{metrics.top1:.2f} %"),
        ("top-5", f"{metrics.top5:.2f} %"),
        ("loss", f"{metrics.loss:.4f}"),
        ("ECE", f"{100 * found.calibration.ece:.2f} %"),
        ("classes", f"{np.nanmean(counts.accuracy):.2f} % on average"),
        *(("", line) for line in confusion_lines(counts, found.names)),
        ("results", args.output / "results.json"),
        ("pictures", ", ".join(str(args.output / name) for name in ("confusion.png", "calibration.png"))),
    ]
    if found.views:
        rows.insert(3, ("views", f"{view_count(found.views)} of each image: {', '.join(found.views)}"))
    if args.predictions:
        rows.append(("table", args.predictions))
    if args.pictures:
        shown = told(min(args.pictures, metrics.count), metrics.count)
        rows.append(("predictions", f"{args.output / 'predictions.png'}{shown}"))
    for name, value in rows:
        logger.info("%-14s %s", name, value)
