#!/usr/bin/env python
"""Evaluate a checkpoint over the validation split: top-1, top-5 and loss; box and mask AP of a detector.

One process: python tools/evaluate.py CONFIG CHECKPOINT. Several: torchrun --nproc_per_node=N tools/evaluate.py …
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from _classification import build_model, environment, open_data, parameters
from _cli import check_writable, make_folder, parser, read, run
from _pictures import draw_predictions
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from elsa.data import eval_loader
from elsa.engine import (
    ConfigError,
    Metrics,
    Runtime,
    choose_precision,
    distributed,
    evaluate,
    logger,
    mistakes_first,
    plain,
    setup_logging,
    sha256,
    write_json,
)
from elsa.models import LoadReport, load_pretrained


def main() -> None:
    arguments = parser(__doc__, checkpoint=True)
    arguments.add_argument("--output", type=Path, metavar="DIR", help="default: runs/evaluate/NAME-OF-CONFIG")
    arguments.add_argument(
        "--pictures",
        type=int,
        default=0,
        metavar="N",
        help="draw N images with their predictions; of classification, mistakes first",
    )
    arguments.add_argument("--per-class", action="store_true", help="detection: AP of each class too")
    args, config = read(arguments)
    args.output = args.output or Path("runs/evaluate") / args.config.stem
    if args.pictures < 0:
        raise ConfigError(f"--pictures must be at least 0, got {args.pictures}")
    if config is None:
        from _dense_verbs import evaluate

        evaluate(args)
        return
    with distributed(args.device) as runtime:
        setup_logging(runtime)
        evaluate_checkpoint(config, args, runtime)


def evaluate_checkpoint(config: CfgNode, args: argparse.Namespace, runtime: Runtime) -> None:
    check_writable(args.output)
    precision = choose_precision(config, runtime.device)
    model = build_model(config, pretrained=False)
    report = load_pretrained(model, args.checkpoint, weights=config.EVAL.WEIGHTS, trust=args.trust_checkpoint)
    logger.info("%s: %s", args.checkpoint, report)
    (source,) = open_data(config, runtime, "val")
    if args.pictures and isinstance(source, IterableDataset):
        raise ConfigError(f"--pictures needs random access, which DATA.DATASET {config.DATA.DATASET} has not")
    loader = eval_loader(config, source, runtime.rank, runtime.world_size)

    began = time.perf_counter()
    progress = loader.with_progress() if runtime.is_main else loader
    metrics = evaluate(
        model.to(runtime.device), progress, loader.total, runtime, precision, keep_predictions=args.pictures > 0
    )
    seconds = time.perf_counter() - began
    if not runtime.is_main:
        return
    make_folder(args.output)
    write_json(
        args.output / "results.json", results(config, args, report, metrics, seconds, runtime, parameters(model))
    )
    tell(config, args, metrics, seconds)
    if args.pictures:
        rows = mistakes_first(metrics.predictions)[: args.pictures]
        path = args.output / "predictions.png"
        draw_predictions(source, rows, path, f"{config.MODEL.NAME}: top-1 {metrics.top1:.2f} %, mistakes first")
        logger.info("predictions    %s", path)


def results(
    config: CfgNode,
    args: argparse.Namespace,
    report: LoadReport,
    metrics: Metrics,
    seconds: float,
    runtime: Runtime,
    size: int,
) -> dict:
    """What results.json holds."""
    return {
        "metrics": metrics.as_dict(),
        "count": metrics.count,
        "skipped": list(metrics.bad),
        "model": config.MODEL.NAME,
        "parameters": size,
        "checkpoint": {
            "path": str(args.checkpoint),
            "sha256": sha256(args.checkpoint),
            "weights": report.entry or "state dict",
        },
        "precision": str(choose_precision(config, runtime.device)),
        "images_per_s": round(metrics.count / seconds, 1),
        "config": plain(config),
        "environment": environment(runtime),
    }


def tell(config: CfgNode, args: argparse.Namespace, metrics: Metrics, seconds: float) -> None:
    rows = [
        ("model", config.MODEL.NAME),
        ("checkpoint", args.checkpoint),
        ("images", f"{metrics.count} ({len(metrics.bad)} unreadable) in {seconds:.1f} s"),
        ("top-1", f"{metrics.top1:.2f} %"),
        ("top-5", f"{metrics.top5:.2f} %"),
        ("loss", f"{metrics.loss:.4f}"),
        ("results", args.output / "results.json"),
    ]
    for name, value in rows:
        logger.info("%-14s %s", name, value)


if __name__ == "__main__":
    run(main)
