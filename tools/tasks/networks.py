"""What a recipe of classification names: the model, and the data."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from elsa.core import ConfigError, did_you_mean, logger, seed_everything
from elsa.core.archive import checkpoint_file
from elsa.data import Source, image_size, open_splits
from elsa.engine import Runtime
from elsa.models import ELSAVOLO, VARIANTS, ELSASwin, load_pretrained, read_checkpoint
from elsa.models.swin import SwinStages

from .checkpoints import check_belongs, class_names

OF_DROPOUT = {"drop_path_rate": "DROP_PATH", "drop_rate": "DROP"}


def open_data(config: CfgNode, runtime: Runtime, *splits: str) -> list[Source | IterableDataset]:
    """The splits; the main process prepares embedded data before the others look for it."""
    with runtime.main_first():
        return open_splits(config, *splits)


def create_network(config: CfgNode) -> nn.Module:
    """The model of MODEL for DATA.IMG_SIZE, freshly initialised, the same for the same seed.

    Raises:
        ConfigError: a name, an argument or an image size that it cannot be built with.
    """
    model = config.MODEL
    if not timm.is_model(model.NAME):
        hint = did_you_mean(model.NAME, timm.list_models()) or "; timm.list_models() has all names"
        raise ConfigError(f"MODEL.NAME {model.NAME!r} is no model{hint}")
    if dropped := [name for name, value in model.KWARGS.items() if value is None]:
        raise ConfigError(f"MODEL.KWARGS: timm leaves out arguments that are null: {', '.join(dropped)}")
    size = config.DATA.IMG_SIZE
    optional = {"img_size": size, "drop_path_rate": model.DROP_PATH, "drop_rate": model.DROP}
    fixed = {"num_classes": model.NUM_CLASSES, "in_chans": model.IN_CHANS, **model.KWARGS}
    while True:
        seed_everything(config.TRAIN.SEED, "model")
        try:
            return timm.create_model(model.NAME, **{**optional, **fixed})
        except TypeError as error:
            lacking = _unexpected(error)
            if others := [name for name in lacking if name not in optional or name in fixed] or not lacking:
                near = _nearest_argument(others[0]) if lacking else ""
                raise ConfigError(f"{model.NAME}: {_first_line(error)}{near}") from error
            for name in lacking:
                if name in OF_DROPOUT and optional[name]:
                    must = f"MODEL.{OF_DROPOUT[name]} must be 0"
                    raise ConfigError(f"MODEL.NAME {model.NAME} has no {name}: {must}") from error
                del optional[name]
            logger.info("%s has no argument %s: left out", model.NAME, ", ".join(lacking))
        except Exception as error:  # models raise whatever their arguments make them stumble over
            told = f"{type(error).__name__}: {_first_line(error)}"
            raise ConfigError(f"{model.NAME} with IMG_SIZE {size} and {dict(model.KWARGS)}: {told}") from error


def build_model(config: CfgNode) -> nn.Module:
    """``create_network``, checked to take DATA.IMG_SIZE.

    Raises:
        ConfigError: a name, an argument or an image size that it cannot be built with.
    """
    network, model, size = create_network(config), config.MODEL, config.DATA.IMG_SIZE
    try:
        with torch.inference_mode():
            out = network.eval()(torch.zeros(1, model.IN_CHANS, *image_size(config)))
    except Exception as error:  # see create_network
        told = _first_line(error)
        raise ConfigError(f"{model.NAME} cannot take images of DATA.IMG_SIZE {size}: {told}") from error
    shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if shape != (1, model.NUM_CLASSES):
        raise ConfigError(
            f"{model.NAME} with {dict(model.KWARGS)} gives {shape} for an image, no {model.NUM_CLASSES} logits"
        )
    if model.GRAD_CHECKPOINTING:
        try:
            network.set_grad_checkpointing()
        except (AttributeError, AssertionError) as error:
            raise ConfigError(f"MODEL.NAME {model.NAME} has no gradient checkpointing: MODEL.GRAD_CHECKPOINTING "
                              "must be false") from error  # fmt: skip
    return network.train()


def load_classifier(config: CfgNode, checkpoint: Path, trust: bool) -> tuple[nn.Module, list[str]]:
    """The model with a checkpoint's weights, as EVAL.WEIGHTS says, and the names of its classes, or their numbers.

    Raises:
        ConfigError: the checkpoint names other classes than the model has.
        CheckpointError: see ``load_pretrained``.
    """
    content, classes = read_checkpoint(checkpoint, trust), config.MODEL.NUM_CLASSES
    model = build_model(config)
    logger.info("%s: %s", checkpoint, load_pretrained(model, content, weights=config.EVAL.WEIGHTS))
    names = class_names(content) or [str(number) for number in range(classes)]
    if len(names) != classes:
        raise ConfigError(f"{checkpoint} names {len(names)} classes, but MODEL.NUM_CLASSES is {classes}")
    return model, names


def start_from_pretrained(network: nn.Module, config: CfgNode, source: Any, trust: bool) -> None:
    """Loads MODEL.PRETRAINED, where there is one, but for MODEL.PRETRAINED_IGNORE.

    Args:
        source: the training images; where the head is loaded, their classes must be the file's.

    Raises:
        ConfigError: the head is of other classes, or of another order.
        CheckpointError: see ``load_pretrained``.
    """
    model = config.MODEL
    if not model.PRETRAINED:
        return
    path = checkpoint_file(Path(model.PRETRAINED))
    content = read_checkpoint(path, trust)
    report = load_pretrained(network, content, ignore=model.PRETRAINED_IGNORE)
    head = _head(network)
    if not head or any(name not in report.ignored for name in head):
        patterns = sorted({f"{name.partition('.')[0]}.*" for name in head})
        cure = f"; to leave out its head, set MODEL.PRETRAINED_IGNORE=[{','.join(patterns)}]" if patterns else ""
        check_belongs(path, content, source, cure)
    logger.info("%s: %s", path, report)


def _head(network: nn.Module) -> list[str]:
    """The tensors that belong to classes."""
    names = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    return [name for name in network.state_dict() if name.startswith(tuple(f"{part}." for part in names))]


def token_grid(config: CfgNode, model: nn.Module) -> tuple[int, int]:
    """Rows and columns of the patch tokens that the model makes of DATA.IMG_SIZE.

    Raises:
        ConfigError: a model without token logits.
    """
    stride = getattr(model, "token_stride", None)
    if stride is None:
        names = ", ".join(name for name in VARIANTS if "volo" in name)
        raise ConfigError(
            f"TOKENS.ENABLED needs a model with token logits ({names}), but MODEL.NAME is {config.MODEL.NAME}"
        )
    height, width = image_size(config)
    return height // stride, width // stride


def _unexpected(error: TypeError) -> list[str]:
    """The arguments that a model does not know; none where the error is another."""
    _, _, named = str(error).partition("unexpected keyword argument")
    return re.findall(r"'(\w+)'", named)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _nearest_argument(name: str) -> str:
    """The argument of the ELSA models that a misspelt one is nearest to."""
    known = {name for network in (SwinStages, ELSASwin, ELSAVOLO) for name in inspect.signature(network).parameters}
    return did_you_mean(name, known)
