"""Evaluation of detectors and segmentors: a loop over ``test_step`` and mmengine's evaluators."""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.evaluator.metric import _to_cpu
from mmengine.registry import METRICS
from torch import nn
from torch.utils.data import DataLoader

from elsa.core import (
    ConfigError,
    Progress,
    UnreadableData,
    did_you_mean,
    logger,
    make_folder,
    sha256,
    without_warnings,
    write_json,
)
from elsa.data.decode import TURNED
from elsa.data.mm.loaders import eval_loader
from elsa.engine import Evaluation, Recipe, Runtime
from elsa.models import load_pretrained, read_checkpoint

from ..checkpoints import about
from ..checkpoints import check_classes as check_names
from ..conclusion import parameters
from ..training import environment
from .pictures import PicturesOfTest
from .session import build_model, check_classes, draw_embedded, mistakes_named, prepare

Seen = Callable[[int, Sequence[Any]], None]
"""Called with the number of a batch and its predictions."""


@dataclass(frozen=True)
class Metric:
    """The metrics of a task.

    Attributes:
        curves: ends of the names that a run's picture draws.
        known: evaluator's configuration, class names → the names of its numbers; empty where that is not known.
    """

    curves: tuple[str, ...]
    known: Callable[[Mapping[str, Any], Sequence[str]], list[str]]


@dataclass(frozen=True)
class Measured:
    """What a pass over a split gives, the same in every process.

    Attributes:
        numbers: of the evaluators; none where a detector found nothing (mmdet gives none then).
        count: images that were evaluated.
        skipped: what is said of each image that cannot be read; what it shows does not count.
    """

    numbers: dict[str, float]
    count: int
    skipped: tuple[str, ...]


def build_evaluator(settings: Any, loader: DataLoader) -> Evaluator:
    """The metrics of ``val_evaluator`` or ``test_evaluator`` for the predictions of a loader's images."""
    dataset = loader.dataset.dataset
    ours = getattr(dataset, "metrics", {})
    metrics = []
    for part in settings if isinstance(settings, (list, tuple)) else [settings]:
        known = ours.get(str(part.get("type")).rpartition(".")[2])
        metrics.append({**part, "type": known, "dataset": dataset} if known else part)
    evaluator = Evaluator([METRICS.build(metric) for metric in metrics])
    evaluator.dataset_meta = loader.dataset.metainfo
    return evaluator


def measure(
    model: nn.Module,
    loader: DataLoader,
    evaluator: Evaluator,
    runtime: Runtime,
    max_bad: int,
    seen: Seen = lambda number, found: None,
) -> Measured:
    """A pass over a split.

    Args:
        max_bad: images that may be unreadable, of all processes.

    Raises:
        UnreadableData: they are more, or all.
        DataError: an image's annotations cannot be used.
    """
    was_training = model.training
    model.eval()
    places: list[list[int]] = [[] for _ in evaluator.metrics]  # of the images that the results belong to
    bad: list[str] = []
    progress = Progress(len(loader), "evaluating", "batch", runtime.is_main)
    try:
        with torch.no_grad(), redirect_stdout(io.StringIO()):  # pycocotools prints the numbers that the log has
            for number, batch in enumerate(loader):
                runtime.pulse()
                bad += batch.bad
                if len(bad) > max_bad:
                    break
                progress.advance(1)
                if batch.data is None:
                    continue
                found = model.test_step(batch.data)
                evaluator.process(data_samples=found, data_batch=batch.data)
                for metric, known in zip(evaluator.metrics, places, strict=True):
                    new = len(metric.results) - len(known)
                    known += batch.places if new == len(batch.places) else batch.places[:1] * new
                seen(number, found)
    finally:
        progress.close()
        model.train(was_training)
    skipped = sorted(name for names in runtime.gather(bad) for name in names)
    count = len(loader.dataset) - len(skipped)
    if len(skipped) > max_bad or not count:
        listed = "; ".join(skipped[:5])
        raise UnreadableData(f"{len(skipped)} images cannot be read (run.max_bad is {max_bad}): {listed}")
    for name in skipped if runtime.is_main else ():
        logger.warning("left out of the evaluation: %s", name)
    return Measured(_numbers(evaluator, places, runtime), count, tuple(skipped))


def _numbers(evaluator: Evaluator, places: Sequence[Sequence[int]], runtime: Runtime) -> dict[str, float]:
    """The metrics over the results of all processes, in the order of the images."""
    numbers: dict[str, float] = {}
    for metric, known in zip(evaluator.metrics, places, strict=True):
        everyone = _gather_in_main(list(zip(known, _to_cpu(metric.results), strict=True)), runtime)
        metric.results.clear()
        results = [result for _, result in sorted(everyone, key=lambda pair: pair[0])]

        def compute(metric: BaseMetric = metric, results: list[Any] = results) -> None:
            with mistakes_named("evaluator"), without_warnings():  # means of nothing are NaN
                for name, value in metric.compute_metrics(results).items():
                    numbers["/".join(filter(None, (metric.prefix, name)))] = float(value)

        runtime.in_main(compute)
    return runtime.gather(numbers)[0]


def _gather_in_main(results: list[Any], runtime: Runtime) -> list[Any]:
    """The results of all processes in the main one, nothing in the others: they are large."""
    if runtime.world_size == 1:
        return results
    everyone: list[Any] | None = [[] for _ in range(runtime.world_size)] if runtime.is_main else None
    dist.gather_object(results, everyone, group=runtime.control)
    return [result for some in everyone or () for result in some]


def evaluate(
    model: nn.Module,
    loader: DataLoader,
    evaluator: Evaluator,
    runtime: Runtime,
    wanted: str,
    max_bad: int,
    seen: Seen = lambda number, found: None,
) -> Evaluation:
    """An evaluation during a training. ``wanted``, what the best checkpoint has most of, is 0 where nothing was found;
    other numbers that the data do not give are left out.

    Raises:
        ConfigError: the evaluator gives no such number.
        UnreadableData: see ``measure``.
    """
    measured = measure(model, loader, evaluator, runtime, max_bad, seen)
    numbers = measured.numbers
    if not numbers:
        logger.warning("the evaluation found nothing: %s counts as 0", wanted)
        numbers = {wanted: 0.0}
    if wanted not in numbers:
        raise ConfigError(f"run.metric: the evaluation has no {wanted!r}; it has {', '.join(numbers)}")
    numbers = {name: value for name, value in numbers.items() if math.isfinite(value) or name == wanted}
    short = {name.partition("/")[2]: value for name, value in numbers.items()}
    listed = " ".join(f"{name} {value:.3f}" for name, value in short.items() if "/" not in name)
    return Evaluation(numbers, measured.count, f"{listed}{_left_out(measured)}")


def _left_out(measured: Measured) -> str:
    names = measured.skipped
    return f" without {len(names)} that cannot be read ({'; '.join(names[:3])})" if names else ""


def check_metric(settings: Any, wanted: str, metric: Metric, classes: Sequence[str]) -> None:
    """Raises ConfigError where it is known beforehand that the evaluator will not give the wanted number."""
    parts = settings if isinstance(settings, (list, tuple)) else [settings]
    with mistakes_named("val_evaluator"):
        known = [metric.known(part, classes) for part in parts]
    names = [name for some in known for name in some]
    if all(known) and wanted not in names:
        raise ConfigError(f"run.metric {wanted!r} is no number of the evaluation{did_you_mean(wanted, names)}")


def evaluate_checkpoint(
    recipe: Recipe,
    args: argparse.Namespace,
    runtime: Runtime,
    passes: Callable[[Config, argparse.Namespace], list[tuple[Config, bool]]],
    rename: Callable[[Mapping[str, float], Config], dict[str, float | None]],
    drawing: Callable[[Mapping[str, Any]], Any],
) -> None:
    """All numbers of the data set's metric, of a checkpoint of ours or of mmdet's and mmseg's.

    Args:
        passes: recipe and options → (configuration, whether with test-time augmentation) of each pass over the data.
        rename: an evaluator's numbers → the names that people read.
        drawing: facts of the data set → what draws a picture.
    """
    config = recipe.config
    prepare(config)
    draw_embedded(config, runtime)
    with mistakes_named("test_evaluator and tta_pipeline"):
        planned = passes(config, args)
    model, _ = build_model(config, runtime)
    metrics: dict[str, float | None] = {}
    max_bad = config.run.get("max_bad", 0)
    content, pictures, measured, began = None, None, Measured({}, 0, ()), time.perf_counter()
    orientation = config.get("image_orientation", TURNED)
    for settings, augmented in planned:
        with mistakes_named("test_dataloader"):
            loader = eval_loader(settings.test_dataloader, runtime.rank, runtime.world_size, orientation)
        check_classes(config, loader.dataset.metainfo["classes"])
        with mistakes_named("test_evaluator"):
            evaluator = build_evaluator(settings.test_evaluator, loader)
        if content is None:
            content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
            check_names(args.checkpoint, content, loader.dataset.metainfo["classes"])
            logger.info("%s: %s", args.checkpoint, load_pretrained(model, content))
            model.to(runtime.device)
            pictures = PicturesOfTest(args.pictures, len(loader), drawing(loader.dataset.metainfo), orientation)
            began = time.perf_counter()
        tested = augment(model, settings) if augmented else model
        drawn = runtime.is_main and settings is planned[0][0]
        seen = pictures.note if drawn else (lambda number, found: None)
        with mistakes_named("the evaluation"):
            measured = measure(tested, loader, evaluator, runtime, max_bad, seen)
        metrics.update(rename(measured.numbers, settings))
    seconds, count = time.perf_counter() - began, measured.count
    if not runtime.is_main:
        return
    make_folder(args.output)
    write_json(args.output / "results.json", {
        "metrics": metrics,
        "count": count,
        "skipped": list(measured.skipped),
        "model": config.model.type,
        "parameters": parameters(model),
        "checkpoint": {"path": str(args.checkpoint), "sha256": sha256(args.checkpoint), "meta": about(content)},
        "images_per_s": round(count / seconds, 2),
        "config": dict(recipe.values),
        "environment": environment(runtime),
    })  # fmt: skip
    pictures.save(args.output / "predictions.png", f"{config.model.type}: ground truth and prediction", count)
    for name, value in metrics.items():
        logger.info("%-24s %s", name.removeprefix("coco/"), "none in the data" if value is None else f"{value:.3f}")
    logger.info("%-24s %d in %.1f s%s", "images", count, seconds, _left_out(measured))
    logger.info("%-24s %s", "results", args.output / "results.json")


def augment(model: nn.Module, config: Config) -> nn.Module:
    """The model with the test-time augmentation of ``tta_model``."""
    from mmengine.registry import MODELS

    with mistakes_named("tta_model"):
        return MODELS.build({**config.tta_model, "module": model})
