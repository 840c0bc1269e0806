"""Weights and inputs that depend on names and shapes alone, the same on every machine and library version.

The files beside this one hold what the authors' published code computed with them. A model with the published
state-dict names and shapes, filled by ``fill_``, must give the same numbers: then released checkpoints load and
evaluate as they were meant to.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch


def values(name: str, shape: Sequence[int]) -> np.ndarray:
    """Standard normal numbers of ``shape`` in float64, from a generator seeded by ``name``."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))


@torch.no_grad()
def fill_(module: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    """Fill every floating-point entry of ``module.state_dict()`` in place, from ``prefix`` and its name."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or name.endswith("attn_mask"):
            continue
        z = values(prefix + name, tensor.shape)
        if name.endswith("running_var"):
            z = np.abs(z) + 0.5
        elif name.endswith("ghost_head"):
            z = 0.3 * z
        elif tensor.ndim >= 2 and not name.endswith(("rb", "pos_embed", "cls_token")):
            z = z / np.sqrt(np.prod(tensor.shape[1:]))
        elif tensor.ndim == 1 and name.endswith("weight"):
            z = 1 + 0.1 * z
        else:
            z = 0.1 * z
        tensor.copy_(torch.from_numpy(z).to(tensor.dtype))
    return module


def tensor(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A named input: ``tensor("image", 2, 3, 224, 224)``."""
    return torch.from_numpy(values(name, shape)).to(dtype)
