"""timm's optimizers for mmengine's configurations, by the names that TRAIN.OPTIMIZER has in classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import OPTIMIZERS
from timm.optim import create_optimizer_v2
from torch import Tensor

from .config import ConfigError
from .optim import check_optimizer
from .runtime import logger


@OPTIMIZERS.register_module()
def TimmOptimizer(  # a factory with a class's name: mmengine builds it by that
    params: Sequence[Tensor] | Sequence[Mapping[str, Any]], opt: str, lr: float, **arguments: Any
) -> torch.optim.Optimizer:
    """An optimizer by its timm name: ``optimizer=dict(type="TimmOptimizer", opt="muon", lr=2e-3, weight_decay=0.01)``.

    Args:
        params: parameters, or the groups that ``paramwise_cfg`` makes of them, one for each parameter; those with the
            same settings become one, for many small tensors are updated faster together.
        opt: a name of ``timm.optim.list_optimizers()``.
        lr: learning rate of groups that have none of their own.
        arguments: of that optimizer.

    Raises:
        ConfigError: a name or an argument that timm does not know.
    """
    check_optimizer(opt, "optim_wrapper.optimizer.opt")
    groups = _merged(params)
    first = groups[0] if isinstance(groups[0], Tensor) else groups[0]["params"][0]
    if "muon" in opt and first.device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        logger.warning("%s multiplies bfloat16 matrices, which is slow on a CPU without AVX-512: "
                       "another optimizer may need less time", opt)  # fmt: skip
    try:
        return create_optimizer_v2(groups, opt=opt, lr=lr, **arguments)
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
