"""Parameter groups, optimizer and schedule: timm's, with policies that must bite."""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from yacs.config import CfgNode

from elsa.core import ConfigError, did_you_mean

from . import apex

SECOND_ORDER = ("adahessian",)


def freeze(model: nn.Module, config: CfgNode) -> None:
    """Keeps the parameters that TRAIN.FREEZE names from learning: no gradient is computed for them.

    Raises:
        ConfigError: a pattern that matches no parameter that learns, or all of them matched.
    """
    patterns, learning = config.TRAIN.FREEZE, _learning(model)
    frozen = set()
    for pattern in patterns:
        if not (matched := fnmatch.filter(learning, pattern)):
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in learning))
            raise ConfigError(
                f"TRAIN.FREEZE: pattern {pattern!r} matches no parameter of {config.MODEL.NAME} that learns; their "
                f"names begin with {parts}"
            )
        frozen.update(matched)
    if patterns and len(frozen) == len(learning):
        raise ConfigError(f"TRAIN.FREEZE {list(patterns)} matches all {len(learning)} parameters: nothing would learn")
    for name in frozen:
        learning[name].requires_grad_(False)


def _learning(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_optimizer(model: nn.Module, config: CfgNode) -> torch.optim.Optimizer:
    """The optimizer over groups with and without weight decay, as TRAIN says.

    Biases and other one-dimensional parameters are exempt, what ``model.no_weight_decay()`` names, and what
    TRAIN.NO_DECAY names. The published rules exempt neither ``rb`` nor ``ghost_head``. What does not learn is in no
    group.

    Raises:
        ConfigError: an optimizer that does not exist, or a pattern that matches no parameter that learns.
    """
    train = config.TRAIN
    device = next(model.parameters()).device
    name, further = find_optimizer(train.OPTIMIZER, "TRAIN.OPTIMIZER", device, train.PARALLEL)
    learning = _learning(model)
    for pattern in train.NO_DECAY:
        if not fnmatch.filter(learning, pattern):
            raise ConfigError(
                f"TRAIN.NO_DECAY: pattern {pattern!r} matches no parameter of {config.MODEL.NAME} that learns"
            )
    exempt = {*getattr(model, "no_weight_decay", set)(), *train.NO_DECAY}

    def groups(module: nn.Module) -> list[dict]:
        common = dict(weight_decay=train.WEIGHT_DECAY, no_weight_decay_list=exempt)
        if train.LAYER_DECAY is None:
            return param_groups_weight_decay(module, **common)
        return param_groups_layer_decay(module, layer_decay=train.LAYER_DECAY, **common)

    try:
        return create_optimizer_v2(
            model,
            opt=name,
            lr=train.LR,
            momentum=train.MOMENTUM,
            betas=train.BETAS,
            eps=train.EPS,
            param_group_fn=groups,
            **further,
        )
    except (ValueError, TypeError, RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(f"TRAIN.OPTIMIZER {train.OPTIMIZER} cannot be used here: {error}") from error


def find_optimizer(name: str, where: str, device: torch.device, parallel: str) -> tuple[str, dict[str, Any]]:
    """timm's name of an optimizer, and the arguments that this machine gives it.

    Gradients are clipped before it sees them, so that what clips by itself does not.

    Args:
        where: the name stands in the recipe. parallel: TRAIN.PARALLEL.

    Raises:
        ConfigError: there is none of that name, or what it needs is missing.
    """
    known = sorted({*map(str, list_optimizers()), *apex.OPTIMIZERS})
    if name not in known:
        raise ConfigError(f"{where} {name!r} is no timm optimizer{did_you_mean(name, known)}")
    if name in SECOND_ORDER:
        raise ConfigError(f"{where} {name!r} needs second derivatives, which are not computed")
    timms = apex.OPTIMIZERS.get(name, name)
    kind = get_optimizer_info(timms).opt_class
    if isinstance(kind, str) and kind.startswith("apex."):
        found = apex.require_optimizer(f"{where} {name}", device, kind.rpartition(".")[2])
        if parallel == "fsdp":
            raise ConfigError(f"{where} {name} cannot update divided parameters: it needs ddp instead of fsdp")
        return timms, {"max_grad_norm": math.inf} if "max_grad_norm" in inspect.signature(found).parameters else {}
    return timms, fused(get_optimizer_class(timms, bind_defaults=False), parallel)


def fused(kind: Callable[..., Any], parallel: str) -> dict[str, Any]:
    """The argument that makes an optimizer of torch's update all parameters at once, on CPUs too, where it has one.

    Args:
        kind: its class. parallel: TRAIN.PARALLEL; divided parameters have it for Adam and AdamW alone.
    """
    if not isinstance(kind, type) or "fused" not in inspect.signature(kind).parameters:
        return {}
    return {"fused": True} if parallel == "ddp" or issubclass(kind, torch.optim.Adam) else {}


class TimmSchedule:
    """timm's schedule, which the step alone determines."""

    def __init__(self, schedule: Scheduler, steps_per_epoch: int) -> None:
        self.schedule, self.steps_per_epoch = schedule, steps_per_epoch

    def set(self, step: int) -> None:
        self.schedule.step(step // self.steps_per_epoch)
        self.schedule.step_update(step)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def build_schedule(optimizer: torch.optim.Optimizer, config: CfgNode, steps_per_epoch: int) -> tuple[TimmSchedule, int]:
    """timm's schedule with warm-up and cool-down, and the number of epochs to run, cool-down included."""
    train = config.TRAIN
    shapes: dict[str, dict[str, Any]] = {
        "cosine": dict(sched="cosine"),
        "linear": dict(sched="poly", decay_rate=1.0),
        "constant": dict(sched="constant"),
    }
    schedule, _ = create_scheduler_v2(
        optimizer,
        num_epochs=train.EPOCHS,
        cooldown_epochs=train.COOLDOWN_EPOCHS,
        warmup_epochs=train.WARMUP_EPOCHS,
        warmup_lr=train.WARMUP_LR,
        min_lr=train.MIN_LR,
        step_on_epochs=train.LR_EVERY == "epoch",
        updates_per_epoch=steps_per_epoch,
        **shapes[train.SCHEDULE],
    )
    return TimmSchedule(schedule, steps_per_epoch), train.EPOCHS + train.COOLDOWN_EPOCHS
