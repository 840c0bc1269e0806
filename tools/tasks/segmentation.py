"""Semantic segmentation (mmseg): what its verbs have of their own."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmengine.config import Config
from torch import nn

from elsa.core import ConfigError
from elsa.engine import Recipe, Runtime

from .mm.evaluation import Metric, evaluate_checkpoint
from .mm.exporting import Logits, export_dense
from .mm.pictures import MapDrawing, MapPredictions
from .mm.planning import compared_backbone, count_dense, dense_outlook
from .mm.prediction import predict
from .mm.recipe import read_recipe, restore_recipe
from .mm.samples import show_samples
from .mm.training import build_training
from .mm.visualizing import ExplainedMap, look_at_dense
from .outlook import Outlook
from .parts import Training
from .training import train

CHECKED = ("CheckedADE20KDataset", "CheckedMapsDataset")
# Losses that may be of a softmax, and whether they are of a sigmoid where a recipe does not say.
SIGMOID = {"ClassWeightedLoss": False, "CrossEntropyLoss": False, "OhemCrossEntropy": False, "DiceLoss": True}


class Segmentation:
    """Segmentors of mmseg on our backbones; recipes are mmengine configurations."""

    name = "segmentation"
    options: ClassVar = {
        "evaluate": [
            ("--per-class", dict(action="store_true", help="the IoU of each class too")),
            (
                "--scales",
                dict(
                    choices=("both", "single", "multi"),
                    default="both",
                    help="one scale, the recipe's several scales (of ADE20K 6, mirrored: 12 times the work), or both",
                ),
            ),
        ]
    }

    def read(self, path: Path, overrides: list[str]) -> Recipe:
        return read_recipe(path, overrides)

    def restore(self, content: Mapping[str, Any], origin: str, overrides: list[str], ours: bool) -> Recipe:
        return restore_recipe(content, origin, overrides, ours)

    def print_config(self, recipe: Recipe) -> str:
        return recipe.text

    def build(self, recipe: Recipe, *rest: Any) -> Training:
        metric = Metric(curves=("mIoU", "aAcc", "mAcc"), known=known_numbers)
        parts = build_training(recipe, *rest, task=self.name, metric=metric, drawing=MapDrawing)
        check_logits(recipe.config.model)
        return parts

    def train(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        train(self.build, recipe, args, runtime)

    def evaluate(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        def rename(metrics: Mapping[str, float], config: Config) -> dict[str, float | None]:
            kept = {name: value for name, value in metrics.items() if args.per_class or "/IoU/" not in name}
            return {name: None if math.isnan(value) else value for name, value in kept.items()}

        evaluate_checkpoint(recipe, args, runtime, scales, rename, MapDrawing)

    def predict(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        predict(recipe.config, args, runtime, MapPredictions)

    def visualize(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        look_at_dense(recipe.config, args, runtime, ExplainedMap)

    def show_data(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        show_samples(recipe.config, args, runtime, MapDrawing)

    def export(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        export_dense(recipe, args, runtime, Logits)

    def outlook(self, recipe: Recipe, args: argparse.Namespace) -> Outlook:
        return dense_outlook(recipe, args)

    def count(self, recipe: Recipe) -> dict[str, Any]:
        return count_dense(recipe.config)

    def network(self, recipe: Recipe) -> tuple[nn.Module, tuple[int, int, int]]:
        return compared_backbone(recipe.config)


def check_logits(model: Mapping[str, Any]) -> None:
    """Raises ConfigError where a head's loss is a softmax over one logit, which is 0 whatever the head says."""
    for name in ("decode_head", "auxiliary_head"):
        heads = model.get(name) or ()
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            losses = head.get("loss_decode") or {}
            for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
                softmax = not loss.get("use_sigmoid", SIGMOID.get(loss.get("type"), True))
                if softmax and 1 in (head.get("num_classes"), head.get("out_channels")):
                    raise ConfigError(
                        f"model.{name} has one logit, of which {loss['type']} is 0 in every step: name two classes, "
                        "background and object, with num_classes=2 and, in the data sets, reduce_zero_label=False, "
                        "where 0 is the first"
                    )


def known_numbers(settings: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Names of the numbers of a ClasswiseIoUMetric for the mIoU."""
    if settings["type"] != "ClasswiseIoUMetric" or list(settings.get("iou_metrics", ["mIoU"])) != ["mIoU"]:
        return []
    names = ("aAcc", "mIoU", "mAcc", *(f"IoU/{name}" for name in classes))
    return [f"{settings['prefix']}/{name}" if settings.get("prefix") else name for name in names]


def scales(config: Config, args: argparse.Namespace) -> list[tuple[Config, bool]]:
    """The passes that ``--scales`` asks for: a single scale; the scales and flips of ``tta_pipeline``, their class
    probabilities averaged, which is how the paper evaluates."""
    several = "tta_model" in config and args.scales != "single"
    passes = [] if several and args.scales == "multi" else [(config, False)]
    if several:
        augmented = copy.deepcopy(config)
        augmented.test_dataloader.dataset.pipeline = config.tta_pipeline
        flips = any(step.get("prob") == 1 for choice in config.tta_pipeline[-1].transforms for step in choice)
        if augmented.test_dataloader.dataset.get("type") in CHECKED:
            augmented.test_dataloader.dataset.look = 0  # the first pass did
        for part in [metric] if isinstance(metric := augmented.test_evaluator, Mapping) else metric:
            part.prefix = "multi_scale_flip" if flips else "multi_scale"
        passes.append((augmented, True))
    return passes
