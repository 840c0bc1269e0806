"""What mmengine's registries need before they build anything, and their mistakes in one line."""

from __future__ import annotations

import copy
import io
import logging
import os
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from elsa.core import ConfigError, TrainingError, UserError
from elsa.data import write_digits_ade, write_digits_coco
from elsa.engine import Runtime

# Data that a recipe's ``embedded`` names by ``type``.
EMBEDDED = {"digits-coco": write_digits_coco, "digits-ade": write_digits_ade}
# What mm's packages raise for values that they cannot use: nearly anything, a missing operator among it.
REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NotImplementedError),
    *(OSError, RuntimeError, TypeError, ValueError),
)


def prepare(config: Config) -> None:
    """Registries look in the recipe's scope first; mm's own loggers only warn."""
    warnings.filterwarnings("ignore", module=r"mm(engine|cv|det|seg)")
    init_default_scope(config.default_scope)
    MMLogger.get_instance("elsa-mm", log_level=logging.WARNING)


def draw_embedded(config: Config, runtime: Runtime) -> None:
    """Draws the data that the recipe's ``embedded`` names into ``embedded.root``, unless they are there; nothing is
    drawn anywhere else.

    Raises:
        ConfigError: no such data, a number that they cannot have, another ``data_root``, or something else in it.
    """
    if not (embedded := dict(config.get("embedded") or {})):
        return
    kind, root = embedded.pop("type", None), embedded.pop("root", None)
    if not isinstance(kind, str) or kind not in EMBEDDED:
        raise ConfigError(f"embedded.type must be {' or '.join(EMBEDDED)}, got {kind!r:.80}")
    if not isinstance(root, str) or os.path.normpath(root) != os.path.normpath(config.get("data_root") or ""):
        raise ConfigError(
            f"data_root {config.get('data_root')} is not embedded.root {root}, the one folder that {kind} are drawn "
            "in: set embedded = None to use the data that is there, or embedded.root to draw them there"
        )
    with runtime.main_first():
        try:
            EMBEDDED[kind](root, **embedded)
        except FileExistsError as error:
            raise ConfigError(
                f"data_root {root} holds other data than embedded.type {kind}; to use them set embedded = None"
            ) from error
        except OSError as error:
            raise ConfigError(f"embedded.root {root} cannot be written: {error.strerror or error}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"embedded: {error}") from error


@contextmanager
def mistakes_named(place: str, runtime: Runtime | None = None) -> Iterator[None]:
    """Whatever mm's packages raise for a value of a recipe becomes one line.

    pycocotools' prints are left out: the log has the same numbers.

    Args:
        place: what of the recipe is built.
        runtime: of processes that are talked to in here: the loss of one is no mistake.
    """
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except (UserError, TrainingError):
        raise
    except REFUSALS as error:
        if runtime:
            runtime.raise_lost(error)
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from error
            cause = cause.__cause__
        said = str(error).strip("'\" \n").splitlines()
        name = "" if said and not isinstance(error, LookupError) else f" ({type(error).__name__})"
        raise ConfigError(f"{place}: {said[0] if said else 'cannot be built'}{name}") from error


def build_model(config: Config, runtime: Runtime) -> tuple[nn.Module, tuple[str, ...]]:
    """The detector or segmentor, the same for the same seed, and what of it this machine does otherwise."""
    seed, adapted = config.randomness.seed, ()
    settings = copy.deepcopy(config.model)  # mmdet writes into what it is given
    if runtime.device.type == "cpu" and _replace_norms(settings):
        adapted = ("no GPU: BN instead of SyncBN",)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with mistakes_named("model"):
        model = MODELS.build(settings)
    if not isinstance(model, BaseModel):
        raise ConfigError(f"model.type {config.model.type} is no detector or segmentor")
    return model, adapted


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
            if key == "class_weight" and isinstance(value, (list, tuple)) and node.get("type") == "ClassWeightedLoss":
                yield f"the length of {where}.{key}", len(value)
            yield from heads(value, f"{where}.{key}")

    for name, count in heads(
        {k: v for k, v in config.model.items() if str(k).endswith("head") and k != "rpn_head"}, "model"
    ):
        if count != len(classes):
            listed = ", ".join(classes[:4])
            raise ConfigError(f"{name} is {count}, but the data has {len(classes)} classes ({listed}, …)")
