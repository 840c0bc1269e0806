"""Linear layers and the MLP of all our networks, called through the kernels' door."""

from __future__ import annotations

import timm.layers
from timm.layers import DropPath
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules.module import _has_any_global_hook

from elsa.kernels import linear, mlp


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``: through the kernels' door where it is a plain nn.Linear that nobody listens to."""
    if isinstance(layer, nn.Linear) and is_plain(layer, nn.Linear):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly this class, and its call would run nothing but the class's forward: no hooks (such
    as those of pruning, or of weights divided among processes), no parametrization, no replaced forward, no graph of fx
    that would have the module as a node."""
    if type(module) is not kind or _has_any_global_hook() or is_fx_symbolic_tracing():
        return False
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not (hooks or "forward" in module.__dict__ or module._compiled_call_impl)


class Mlp(timm.layers.Mlp):
    """Linear layer, GELU, linear layer: (…, C) → (…, C); the parts of timm's MLP under the same names."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """With a ``residual`` (…, C) it is added to the result."""
        if self._is_fused():
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, residual=residual)
        x = apply_linear(self.fc1, x)
        x = self.norm(self.drop1(self.act(x)))
        x = self.drop2(apply_linear(self.fc2, x))
        return x if residual is None else x + residual

    def _is_fused(self) -> bool:
        parts = ((self.fc1, nn.Linear), (self.act, nn.GELU), (self.drop1, nn.Dropout), (self.norm, nn.Identity),
                 (self.fc2, nn.Linear), (self.drop2, nn.Dropout))  # fmt: skip
        drops = self.training and (self.drop1.p or self.drop2.p)
        return not drops and all(is_plain(*part) for part in parts) and self.act.approximate == "none"


def add_mlp(x: Tensor, norm: nn.Module, mlp: nn.Module, drop_path: nn.Module) -> Tensor:
    """``x + drop_path(mlp(norm(x)))``, the second half of a block; without stochastic depth the MLP adds x itself."""
    idle = is_plain(drop_path, nn.Identity) or (
        is_plain(drop_path, DropPath) and not (drop_path.training and drop_path.drop_prob)
    )
    if idle and isinstance(mlp, Mlp):
        return mlp(norm(x), residual=x)
    return x + drop_path(mlp(norm(x)))
