"""What mmengine's registries need before they build anything, and their mistakes in one line."""

from __future__ import annotations

import copy
import io
import logging
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from elsa.core import ConfigError, DataError
from elsa.data import write_digits_ade, write_digits_coco
from elsa.engine import Runtime
from elsa.models.mm.operators import MissingOperator

# Data that a recipe's ``embedded`` names by ``type``.
EMBEDDED = {"digits-coco": write_digits_coco, "digits-ade": write_digits_ade}


def prepare(config: Config) -> None:
    """Registries look in the recipe's scope first; mm's own loggers only warn."""
    warnings.filterwarnings("ignore", module=r"mm(engine|cv|det|seg)")
    init_default_scope(config.default_scope)
    MMLogger.get_instance("elsa-mm", log_level=logging.WARNING)


def write_embedded(config: Config, runtime: Runtime) -> None:
    """Writes the embedded data that the recipe names, unless they are there.

    Raises:
        ConfigError: no such data, a number that they cannot have, or something else in their place.
    """
    if not (embedded := dict(config.get("embedded") or {})):
        return
    if (kind := embedded.pop("type", None)) not in EMBEDDED:
        raise ConfigError(f"embedded.type must be {' or '.join(EMBEDDED)}, got {kind!r}")
    with runtime.main_first():
        try:
            EMBEDDED[kind](config.data_root, **embedded)
        except FileExistsError as error:
            raise ConfigError(
                f"data_root {config.data_root} holds other data than embedded.type {kind}; for data of your own set "
                "embedded = None"
            ) from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"embedded: {error}") from error


@contextmanager
def mistakes_named() -> Iterator[None]:
    """What mmengine's registries raise for a wrong value in a recipe becomes one line.

    pycocotools' prints are left out: the log has the same numbers.
    """
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except (ConfigError, DataError):
        raise
    except (TypeError, ValueError, KeyError, AssertionError, FileNotFoundError, MissingOperator) as error:
        if isinstance(error.__cause__, (ConfigError, DataError)):
            raise error.__cause__ from error
        raise ConfigError(str(error).strip("'\"").splitlines()[0] if str(error) else repr(error)) from error


def build_model(config: Config, runtime: Runtime) -> tuple[nn.Module, tuple[str, ...]]:
    """The detector or segmentor, the same for the same seed, and what of it this machine does otherwise."""
    seed, adapted = config.randomness.seed, ()
    settings = copy.deepcopy(config.model)  # mmdet writes into what it is given
    if runtime.device.type == "cpu" and _replace_norms(settings):
        adapted = ("no GPU: BN instead of SyncBN",)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with mistakes_named():
        return MODELS.build(settings), adapted


def _replace_norms(node: Any) -> bool:
    """SyncBN needs a GPU; BN has the same tensors. Whether there were some."""
    found = False
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        if isinstance(value, dict) and value.get("type") == "SyncBN":
            value["type"], found = "BN", True
        found |= _replace_norms(value)
    return found


def check_classes(config: Config, classes: Iterable[str]) -> None:
    """Raises ConfigError where a head, or the weights of its loss, have another number of classes than the data."""
    classes = tuple(classes)

    def heads(node: Any, where: str) -> Iterator[tuple[str, int]]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
        for key, value in items:
            if key == "num_classes":
                yield f"{where}.{key}", value
            if key == "class_weight" and value and node.get("type") == "ClassWeightedLoss":
                yield f"the length of {where}.{key}", len(value)
            yield from heads(value, f"{where}.{key}")

    for name, count in heads(
        {k: v for k, v in config.model.items() if k.endswith("head") and k != "rpn_head"}, "model"
    ):
        if count != len(classes):
            listed = ", ".join(classes[:4])
            raise ConfigError(f"{name} is {count}, but the data has {len(classes)} classes ({listed}, …)")
