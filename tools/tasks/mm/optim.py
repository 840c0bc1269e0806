"""Optimizers and schedules of mmengine's configurations; timm's optimizers by the names that classification uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from elsa.core import ConfigError, logger
from elsa.engine.optim import find_optimizer, fused

UPDATES = ("fused", "foreach", "differentiable", "capturable")  # how torch's optimizers update, of which fused is ours


def build_optimizer(model: nn.Module, settings: Mapping[str, Any], parallel: str) -> torch.optim.Optimizer:
    """The optimizer of ``optim_wrapper``, its parameter groups by ``paramwise_cfg``; torch's are fused unless the
    recipe says how they update.

    Args:
        parallel: run.parallel.

    Raises:
        ConfigError: a pattern of ``paramwise_cfg.custom_keys`` that matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in (settings.get("paramwise_cfg") or {}).get("custom_keys", {}):
        if not any(pattern in name for name in names):
            raise ConfigError(f"optim_wrapper.paramwise_cfg.custom_keys: {pattern!r} is part of no parameter's name")
    kept = ("optimizer", "paramwise_cfg", "constructor")
    wrapper = {name: settings[name] for name in kept if settings.get(name) is not None}
    optimizer = dict(wrapper["optimizer"])
    kind = optimizer.get("type")
    if kind in (TimmOptimizer, TimmOptimizer.__name__):
        optimizer["parallel"] = parallel
    elif not any(name in optimizer for name in UPDATES):
        optimizer |= fused(OPTIMIZERS.get(kind) if isinstance(kind, str) else kind, parallel)
    wrapper["optimizer"] = optimizer
    return build_optim_wrapper(model, {"type": "OptimWrapper", **wrapper}).optimizer


class Schedules:
    """mmengine's schedulers, which change the optimizer's learning rates from one step to the next.

    Args:
        settings: ``param_scheduler``; steps of those that are not ``by_epoch`` are optimizer steps.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: Sequence[Mapping[str, Any]], steps_per_epoch: int
    ) -> None:
        self.steps_per_epoch, self.done, self.schedulers = steps_per_epoch, 0, []
        for one in [settings] if isinstance(settings, Mapping) else settings:
            arguments, kind = dict(one), PARAM_SCHEDULERS.get(one["type"])
            if arguments.pop("convert_to_iter_based", False):
                kind, default = kind.build_iter_from_epoch, dict(epoch_length=steps_per_epoch)
                self.schedulers.append(kind(optimizer=optimizer, **default, **_without_type(arguments)))
            else:
                self.schedulers.append(PARAM_SCHEDULERS.build(arguments, default_args=dict(optimizer=optimizer)))

    def set(self, step: int) -> None:
        while self.done < step:
            self.done += 1
            ends_epoch = self.done % self.steps_per_epoch == 0
            for scheduler in self.schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
            for scheduler in self.schedulers:
                if scheduler.by_epoch and ends_epoch:
                    scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """What the configuration does not determine, in plain containers."""
        plain = (int, float, str, list, type(None))
        states = [
            {name: value for name, value in scheduler.state_dict().items() if isinstance(value, plain)}
            for scheduler in self.schedulers
        ]
        return {"done": self.done, "schedulers": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        for scheduler, one in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(one)


def _without_type(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "type"}


@OPTIMIZERS.register_module()
def TimmOptimizer(  # a factory with a class's name: mmengine builds it by that
    params: Sequence[Tensor] | Sequence[Mapping[str, Any]], opt: str, lr: float, parallel: str = "ddp", **arguments: Any
) -> torch.optim.Optimizer:
    """An optimizer by its timm name: ``optimizer=dict(type="TimmOptimizer", opt="muon", lr=2e-3, weight_decay=0.01)``.

    Args:
        params: parameters, or the groups that ``paramwise_cfg`` makes of them, one for each parameter; those with the
            same settings become one, for many small tensors are updated faster together.
        opt: a name of ``timm.optim.list_optimizers()``, apex_fused_adam or apex_fused_lamb.
        lr: learning rate of groups that have none of their own.
        parallel: run.parallel, which is not written here.
        arguments: of that optimizer.

    Raises:
        ConfigError: a name or an argument that timm does not know, or an optimizer whose package is missing.
    """
    groups = _merged(params)
    first = groups[0] if isinstance(groups[0], Tensor) else groups[0]["params"][0]
    name, further = find_optimizer(opt, "optim_wrapper.optimizer.opt", first.device, parallel)
    if any(update in arguments for update in UPDATES):
        further.pop("fused", None)
    if "muon" in opt and first.device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        logger.warning("%s multiplies bfloat16 matrices, which is slow on a CPU without AVX-512: "
                       "another optimizer may need less time", opt)  # fmt: skip
    try:
        return create_optimizer_v2(groups, opt=name, lr=lr, **{**further, **arguments})
    except TypeError as error:
        raise ConfigError(f"optim_wrapper.optimizer: {error}") from error


def _merged(params: Sequence[Tensor] | Sequence[Mapping[str, Any]]) -> list[Any]:
    params, groups = list(params), {}
    if isinstance(params[0], Tensor):
        return params
    for group in params:
        settings = {name: value for name, value in group.items() if name != "params"}
        merged = groups.setdefault(repr(sorted(settings.items())), {"params": [], **settings})
        merged["params"] += group["params"]
    return list(groups.values())
