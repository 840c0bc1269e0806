"""Folders as model hubs have them: the weights, what builds the network again, and a card that tells of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.models._hub import save_config_for_hf

from elsa.core import ConfigError, TrainingError, logger, make_folder, write_folder
from elsa.core.archive import HUB_WEIGHTS, write_tensors
from elsa.engine import Recipe
from elsa.engine.checkpoint import told_of

from .card import card
from .subject import Subject

CARD = "README.md"


def write_timm_folder(recipe: Recipe, subject: Subject, content: Mapping[str, Any], args: argparse.Namespace) -> None:
    """A folder that timm loads by its name, ``local-dir:FOLDER`` or as a repository ``hf-hub:OWNER/NAME``.

    Raises:
        TrainingError: what timm loads of it computes something else; nothing is left.
    """

    def fill(folder: Path) -> None:
        config, classes = recipe.config, subject.about["classes"]
        save_config_for_hf(
            subject.network,
            str(folder / "config.json"),
            model_config={"label_names": classes} if classes else None,
            data_config=dict(
                input_size=(subject.channels, *subject.size),
                interpolation=config.EVAL.INTERPOLATION,
                crop_pct=config.EVAL.CROP,
                mean=tuple(config.DATA.MEAN),
                std=tuple(config.DATA.STD),
            ),
        )
        _write_rest(folder, recipe, subject, content, args)
        _check_timm(folder, subject)

    write_hub_folder(args, subject, fill)


def write_folder_of_recipe(
    recipe: Recipe,
    subject: Subject,
    content: Mapping[str, Any],
    args: argparse.Namespace,
    values: Mapping[str, Any],
) -> None:
    """A folder with the recipe and the weights, which evaluate and predict take as CHECKPOINT.

    Args:
        values: of the recipe, nested, as checkpoints hold them.
    """
    write_hub_folder(
        args, subject, lambda folder: _write_rest(folder, recipe, subject, content, args, {"recipe": values})
    )


def write_hub_folder(args: argparse.Namespace, subject: Subject, fill: Callable[[Path], None]) -> None:
    """The folder, whole or not at all; with --overwrite in the place of one that an export wrote.

    Raises:
        ConfigError: something else lies there.
    """
    make_folder(args.output.parent)
    try:
        write_folder(args.output, lambda root: False, fill, may_replace=lambda root: args.overwrite and _is_hub(root))
    except FileExistsError as error:
        raise ConfigError(f"--output {args.output} holds other things than an export wrote; they stay") from error
    files = ", ".join(sorted(path.name for path in args.output.iterdir()))
    size = (args.output / HUB_WEIGHTS).stat().st_size / 1e6
    logger.info("%s: %s with %s, %.1f MB of weights", args.output, subject.name, files, size)


def _is_hub(root: Path) -> bool:
    return (root / HUB_WEIGHTS).is_file() and (root / CARD).is_file()


def _write_rest(
    folder: Path,
    recipe: Recipe,
    subject: Subject,
    content: Mapping[str, Any],
    args: argparse.Namespace,
    further: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """The weights, which hold the recipe too, the recipe as a file, and the card."""
    tensors = {name: tensor.contiguous() for name, tensor in subject.network.state_dict().items()}
    told = {name: content[name] for name in ("classes", "meta") if name in content}
    told |= {"task": subject.about["task"], "arch": subject.name, "config": dict(recipe.values), **further}
    write_tensors(folder / HUB_WEIGHTS, tensors, told_of(told))
    (folder / recipe.file).write_text(recipe.text, encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in subject.network.parameters())
    figures = figures_beside(args.checkpoint, subject.about["checkpoint"]["sha256"])
    if subject.top1 is not None:
        figures = {**figures, "top1": subject.top1(subject.call)}
    text = card(subject.about, recipe, parameters, figures, args.output.name)
    (folder / CARD).write_text(text, encoding="utf-8")


def figures_beside(checkpoint: Path, digest: str) -> dict[str, Any]:
    """The metrics of the ``results.json`` beside a checkpoint, if it is of this very file; else none."""
    path = checkpoint.with_name("results.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same, metrics, count = found["checkpoint"]["sha256"] == digest, dict(found["metrics"]), found["count"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        logger.info("%s is left out of the card: %s", path, type(error).__name__)
        return {}
    if not same:
        logger.info("%s is left out of the card: it is of another checkpoint", path)
        return {}
    return {**metrics, "images": count}


def _check_timm(folder: Path, subject: Subject) -> None:
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = subject.images(subject.shapes[0])
    with torch.no_grad():
        expected, found = subject.network(images), again(images)
    if not torch.equal(found, expected):
        apart = float((found - expected).abs().max())
        raise TrainingError(f"what timm loads of the folder computes something else: logits up to {apart:.1e} apart")
