"""The one door to linear layers: PyTorch's own, or oneDNN's product where that is faster (``onednn.py``)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import graphs, mlps, onednn

ACTIVATIONS = (None, "gelu")
CHOICES = ("auto", "torch", "onednn")
FEWEST_ROWS, FEWEST_PRODUCTS = 32, 2**21  # below, PyTorch's own is faster: a call from Python costs 10 to 40 µs more


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A linear layer: x (…, K), weight (N, K), bias (N,) → (…, N), then exact GELU if asked for, then ``+ residual``.

    Where it is faster (``linear_info``) oneDNN's product computes it, forward and backward, in float32 and bfloat16.
    The weight is read at every call: it may change in any way in between. ``ELSA_LINEAR=torch|onednn`` chooses.
    Graphs of ``torch.compile`` have it as an operator (``graphs.py``). Everything else is PyTorch's ``linear``,
    ``gelu`` and sum: small layers, other types and devices, subclasses of tensors, ``torch.export``, ``torch.func``,
    forward-mode and second derivatives, and whatever watches operators (``FlopCounterMode``, which therefore counts
    the same).

    Args:
        weight: of a linear layer; a 1×1 convolution's as ``weight.flatten(1)``.
        activation: None or "gelu".
        residual: (…, N), added at the end.

    Raises:
        ValueError: no such activation, or ELSA_LINEAR has no such choice.
        RuntimeError: ELSA_LINEAR is onednn, which cannot run here; or shapes, types or devices do not fit, as
            PyTorch's ``linear`` words it.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'gelu', got {activation!r}")
    gelu = activation == "gelu"
    if torch.compiler.is_compiling() and graphs.takes(x, weight):
        return _in_graph(x, weight, bias, gelu, residual)
    if not _taken(x, weight, bias):
        out = onednn.plain_linear(x, weight, bias, gelu)
        return out if residual is None else out + residual
    inputs = _autocast(x, weight, bias)
    run: Callable[..., Tensor] = onednn.Linear.apply if _differentiates(*inputs) else onednn.linear
    out = run(*inputs, gelu)
    if residual is None:
        return out
    same = _fits(residual, x.shape[:-1], len(weight)) and residual.dtype == out.dtype
    return out.add_(residual) if same else out + residual  # nothing that backward needs is overwritten


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    residual: Tensor | None = None,
) -> Tensor:
    """``linear(linear(x, weight1, bias1, activation="gelu"), weight2, bias2, residual=residual)``, by the same rules.

    Processors with AVX-512 compute it some rows at a time, so that the hidden map stays in the caches, be the product
    oneDNN's or PyTorch's. For backward x is kept, and
    the hidden map before GELU where x has more than 128 channels: 1 or 5 numbers instead of 9 for each of x where the
    MLP is 4 times as wide.

    Args:
        x: (…, C). weight1: (hidden, C). bias1: (hidden,). weight2: (N, hidden). bias2: (N,). residual: (…, N).

    Raises:
        ValueError, RuntimeError: as ``linear``.
    """
    learns = _differentiates(x, weight1, bias1, weight2, bias2)
    if torch.compiler.is_compiling() and graphs.takes_mlp(x, weight1, weight2, learns):
        out, _ = graphs.mlp(*_autocast(x, weight1, bias1, weight2, bias2), learns, graphs.usable())
        return out if residual is None else out + residual
    by_onednn = _taken(x, weight1, bias1)
    taken = by_onednn or _goes_by_rows(x, weight1, bias1)
    taken = taken and _same_kind(x, weight2, bias2)
    taken = taken and weight2.ndim == 2 and weight2.shape[1] == len(weight1)
    if not taken or not _fits(residual, x.shape[:-1], len(weight2)):
        hidden = linear(x, weight1, bias1, activation="gelu")
        return linear(hidden, weight2, bias2, residual=residual)
    inputs = (*_autocast(x, weight1, bias1, weight2, bias2), residual)
    run: Callable[..., Tensor] = mlps.MLP.apply if _differentiates(*inputs) else mlps.mlp
    return run(mlps.products(by_onednn), *inputs)


def linear_info() -> str:
    """Whose product computes large linear layers on the CPU here, and why: "onednn: …" or "torch: …".

    Raises:
        ValueError: ELSA_LINEAR has no such choice.
    """
    choice, obstacle = _choice(), onednn.obstacle()
    faster, reason = onednn.processor()
    if choice != "auto":
        name, reason = choice, "ELSA_LINEAR names it"
    else:
        name = "onednn" if faster and obstacle is None else "torch"
    return f"{name}: {obstacle or reason}" if name == "onednn" or faster else f"torch: {reason}"


def _in_graph(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, residual: Tensor | None) -> Tensor:
    inputs = _autocast(x, weight, bias)
    learns = _differentiates(*inputs)
    out = graphs.linear(*inputs, gelu and not learns)
    if gelu and learns:
        out = F.gelu(out)
    return out if residual is None else out + residual


# ---- by whom


def _choice() -> str:
    choice = os.environ.get("ELSA_LINEAR", "auto")
    if choice not in CHOICES:
        raise ValueError(f"ELSA_LINEAR is {choice!r}; choose one of {', '.join(CHOICES)}")
    return choice


def _taken(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN computes this layer."""
    if _is_traced():
        return False
    choice = _choice()
    if choice == "torch" or (choice == "auto" and not onednn.processor()[0]):
        return False
    if (obstacle := onednn.obstacle()) is not None:
        if choice == "onednn":
            raise RuntimeError(f"ELSA_LINEAR is onednn, which cannot run: {obstacle}")
        return False
    return _suits(x, weight, bias)


def _goes_by_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether an MLP that begins with this layer is computed some rows at a time by PyTorch's product."""
    return not _is_traced() and _choice() == "auto" and onednn.has_avx512() and _suits(x, weight, bias)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a layer may be other than PyTorch's own, and is worth it."""
    return _is_large(x, weight) and not _watched() and _same_kind(x, weight, bias)


def _watched() -> bool:
    """Whether something looks at operators or transforms them, and expects PyTorch's usual ones."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or not torch._C._get_mkldnn_enabled()
    )


def _same_kind(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Plain CPU tensors of one type (of any under autocast) and shapes that fit; else PyTorch words the error."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_cpu or tensor.layout is not torch.strided:
            return False
    cast = torch.is_autocast_enabled("cpu")
    computed = torch.get_autocast_dtype("cpu") if cast else x.dtype
    if computed not in onednn.TYPES or (computed == torch.bfloat16 and not onednn.has_bfloat16()):
        return False
    if any(tensor.dtype != computed and not (cast and tensor.dtype in onednn.TYPES) for tensor in tensors):
        return False
    if bias is not None and bias.shape != weight.shape[:1]:
        return False
    return weight.is_contiguous() or (weight.ndim == 2 and weight.t().is_contiguous())


def _is_large(x: Tensor, weight: Tensor) -> bool:
    if x.ndim < 2 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        return False
    outputs, inputs = weight.shape
    rows = x.numel() // max(inputs, 1)
    return rows >= FEWEST_ROWS and rows * inputs * outputs >= FEWEST_PRODUCTS


def _fits(residual: Tensor | None, leading: torch.Size, channels: int) -> bool:
    if residual is None:
        return True
    plain = type(residual) is Tensor and residual.is_cpu and residual.dtype in onednn.TYPES
    return plain and residual.shape == (*leading, channels)


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """As autocast does for ``F.linear``."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def _differentiates(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
