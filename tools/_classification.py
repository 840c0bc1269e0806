"""Classification put together: the model and the data that a configuration names."""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Any

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from elsa.data import Source, open_splits
from elsa.engine import ConfigError, Runtime, describe_environment, logger, seed_everything
from elsa.kernels import backend_info
from elsa.models import ELSAVOLO, VARIANTS, ELSASwin, load_pretrained
from elsa.models.swin import SwinStages


def create_network(config: CfgNode) -> nn.Module:
    """The model of MODEL for DATA.IMG_SIZE, freshly initialised, the same for the same seed.

    Raises:
        ConfigError: a name, an argument or an image size that it cannot be built with.
    """
    model = config.MODEL
    if not timm.is_model(model.NAME):
        near = difflib.get_close_matches(model.NAME, timm.list_models(), 1)
        hint = f"; did you mean {near[0]}?" if near else "; timm.list_models() has all names"
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
            shape = tuple(network.eval()(torch.zeros(1, model.IN_CHANS, size, size)).shape)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{model.NAME} cannot take images of DATA.IMG_SIZE {size}: {reason}") from error
    assert shape == (1, model.NUM_CLASSES), f"{model.NAME} gives {shape}"
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


def open_data(config: CfgNode, runtime: Runtime, *splits: str) -> list[Source | IterableDataset]:
    """The splits; the main process prepares embedded data before the others look for it."""
    with runtime.main_first():
        return open_splits(config, *splits)


def weights_that_count(config: CfgNode, model: nn.Module, ema: ModelEmaV3 | None) -> nn.Module:
    """The module that is evaluated during training: the EMA where there is one, unless EVAL.WEIGHTS says model."""
    return model if ema is None or config.EVAL.WEIGHTS == "model" else ema.module


def environment(runtime: Runtime) -> dict[str, Any]:
    """What a run says about the machine, and which implementations of the operator it had."""
    return {**describe_environment(runtime), "operator": backend_info()}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _nearest_argument(message: str) -> str:
    """The argument of the ELSA models that a misspelt one is nearest to."""
    found = re.search(r"unexpected keyword argument '(\w+)'", message)
    known = {name for network in (SwinStages, ELSASwin, ELSAVOLO) for name in inspect.signature(network).parameters}
    near = difflib.get_close_matches(found[1], known, 1) if found else []
    return f"; did you mean {near[0]}?" if near else ""
