"""Classifiers by name: the model that a recipe of classification names."""

from __future__ import annotations

import inspect
import re
from typing import Any

import timm
import torch
from torch import nn
from yacs.config import CfgNode

from elsa.core import ConfigError, did_you_mean, logger, seed_everything
from elsa.models import ELSAVOLO, VARIANTS, ELSASwin, load_pretrained
from elsa.models.swin import SwinStages


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
    common: dict[str, Any] = dict(
        num_classes=model.NUM_CLASSES, in_chans=model.IN_CHANS, drop_path_rate=model.DROP_PATH, drop_rate=model.DROP
    )
    seed_everything(config.TRAIN.SEED, "model")
    size = config.DATA.IMG_SIZE
    try:
        try:
            return timm.create_model(model.NAME, img_size=size, **common, **model.KWARGS)
        except TypeError as error:
            if "'img_size'" not in str(error):
                raise
            return timm.create_model(model.NAME, **common, **model.KWARGS)
    except TypeError as error:
        raise ConfigError(f"{model.NAME}: {error}{_nearest_argument(str(error))}") from error
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"{model.NAME} with IMG_SIZE {size} and {dict(model.KWARGS)}: {error}") from error


def build_model(config: CfgNode, pretrained: bool) -> nn.Module:
    """``create_network``, checked to take DATA.IMG_SIZE.

    Args:
        pretrained: whether to start from MODEL.PRETRAINED; not where a checkpoint replaces the weights anyway, so that
            a run can be resumed or evaluated without the file that it started from.

    Raises:
        ConfigError: a name, an argument or an image size that it cannot be built with.
    """
    network, model, size = create_network(config), config.MODEL, config.DATA.IMG_SIZE
    try:
        with torch.inference_mode():
            out = network.eval()(torch.zeros(1, model.IN_CHANS, size, size))
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{model.NAME} cannot take images of DATA.IMG_SIZE {size}: {reason}") from error
    shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if shape != (1, model.NUM_CLASSES):
        raise ConfigError(
            f"{model.NAME} with {dict(model.KWARGS)} gives {shape} for an image, no {model.NUM_CLASSES} logits"
        )
    if model.GRAD_CHECKPOINTING:
        network.set_grad_checkpointing()
    if pretrained and model.PRETRAINED:
        report = load_pretrained(network, model.PRETRAINED, ignore=model.PRETRAINED_IGNORE)
        logger.info("%s: %s", model.PRETRAINED, report)
    return network.train()


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
    return (config.DATA.IMG_SIZE // stride,) * 2


def _nearest_argument(message: str) -> str:
    """The argument of the ELSA models that a misspelt one is nearest to."""
    found = re.search(r"unexpected keyword argument '(\w+)'", message)
    known = {name for network in (SwinStages, ELSASwin, ELSAVOLO) for name in inspect.signature(network).parameters}
    return did_you_mean(found[1], known) if found else ""
