"""Classifiers: their network, what a user must know of its images, and how many it still gets right."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from elsa.core import __version__, logger, sha256
from elsa.data import eval_loader, image_size
from elsa.engine import Recipe, Runtime, evaluate, fit_precision
from elsa.models import load_pretrained, read_checkpoint

from ..checkpoints import check_belongs, class_names
from ..command import Option
from ..networks import build_model, open_data
from .hub import write_timm_folder
from .options import HUB, check_options
from .subject import Call, Subject
from .writing import export_network

OPTIONS: list[Option] = [
    (
        "--accuracy",
        dict(action="store_true", help="top-1 of PyTorch and of the file over the recipe's validation split"),
    ),
]


def export_classifier(recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
    """Writes the network of a checkpoint, and what is known of it.

    Raises:
        ConfigError: a format or file that cannot be, packages that are missing.
        TrainingError: what was written computes something else than PyTorch; nothing is left.
    """
    form, config = check_options(args), recipe.config
    content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
    model = build_model(config)
    logger.info("%s: %s", args.checkpoint, load_pretrained(model, content, weights=config.EVAL.WEIGHTS))
    model.eval().requires_grad_(False)
    height, width = image_size(config)
    subject = Subject(
        network=model,
        name=config.MODEL.NAME,
        outputs=("logits",),
        channels=config.MODEL.IN_CHANS,
        size=(height, width),
        about=describe(config, content, args.checkpoint),
        shapes=((1, height, width), (3, height, width)),
        others=((2, height + 13, width + width // 2 + 7), (1, max(height // 2, 33), width)),
        top1=accuracy_of(config, args.checkpoint, content, runtime) if args.accuracy else None,
    )
    if form == HUB:
        write_timm_folder(recipe, subject, content, args)
    else:
        export_network(subject, args, form)


def describe(config: CfgNode, content: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """How images become the network's input, and what its output means."""
    return {
        "task": "classification",
        "model": config.MODEL.NAME,
        "input": {
            "name": "images",
            "color": "RGB" if config.MODEL.IN_CHANS == 3 else "grey",
            "values": "0 … 1, then minus mean, divided by std",
            "resize": {"crop": config.EVAL.CROP, "interpolation": config.EVAL.INTERPOLATION},
            "mean": list(config.DATA.MEAN),
            "std": list(config.DATA.STD),
        },
        "outputs": [{"name": "logits", "shape": ["batch", config.MODEL.NUM_CLASSES]}],
        "classes": class_names(content) or None,
        **origin(checkpoint),
    }


def origin(checkpoint: Path) -> dict[str, Any]:
    """Where a network comes from."""
    return {
        "checkpoint": {"file": checkpoint.name, "sha256": sha256(checkpoint)},
        "versions": {"elsa": __version__, "torch": torch.__version__},
    }


class Called(nn.Module):
    """A function of images as a network that can be evaluated."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.function = call

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)[0]


def accuracy_of(
    config: CfgNode, checkpoint: Path, content: Mapping[str, Any], runtime: Runtime
) -> Callable[[Call], float]:
    """How a function's top-1 accuracy is found, in per cent, over the validation split."""
    (source,) = open_data(config, runtime, "val")
    check_belongs(checkpoint, content, source)

    def top1(call: Call) -> float:
        loader = eval_loader(config, source, 0, 1)
        precision = fit_precision(None, runtime.device)
        network = Called(call)
        return evaluate(network, loader.with_progress(), loader.total, runtime, precision, loader.bad).top1

    return top1
