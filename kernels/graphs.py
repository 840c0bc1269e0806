"""Linear layers of oneDNN, and MLPs some rows at a time, as operators that torch.compile takes into its graphs.

Without the layers a compiled network would compute with MKL's products, at half the speed where ``onednn.processor``
says so; without the MLPs it would write their hidden maps to memory, which an uncompiled one does not.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from . import mlps, onednn

SMALLEST_WEIGHT = 2**13  # numbers; the rows of a graph may be of any number


@torch.compiler.assume_constant_result
def usable() -> bool:
    """Whether this processor's large linear layers are oneDNN's; asked while a graph is made."""
    choice = os.environ.get("ELSA_LINEAR", "auto")
    return choice != "torch" and onednn.obstacle() is None and (choice == "onednn" or onednn.processor()[0])


@torch.compiler.assume_constant_result
def has_bfloat16() -> bool:
    return onednn.has_bfloat16()


@torch.compiler.assume_constant_result
def goes_by_rows() -> bool:
    """Whether this processor's large MLPs are computed some rows at a time by PyTorch's product."""
    return os.environ.get("ELSA_LINEAR", "auto") == "auto" and onednn.has_avx512()


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether a graph has this layer as an operator: plain tensors of the CPU, in types that oneDNN computes."""
    return _suits(x, weight) and usable()


def takes_mlp(x: Tensor, weight1: Tensor, weight2: Tensor, learns: bool) -> bool:
    """The same of an MLP. By PyTorch's product only where it ``learns``: else the compiler fuses GELU with the product,
    and packs weights that are constants."""
    return _suits(x, weight1) and _suits(x, weight2) and (usable() or (learns and goes_by_rows()))


def _suits(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_exporting() or not x.is_cpu or weight.numel() < SMALLEST_WEIGHT:
        return False
    cast = torch.is_autocast_enabled("cpu")
    computed = torch.get_autocast_dtype("cpu") if cast else x.dtype
    same = cast or x.dtype == weight.dtype
    return same and (computed == torch.float32 or (computed == torch.bfloat16 and has_bfloat16()))


# ---- linear layer


@torch.library.custom_op("elsa::onednn_linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return onednn.linear(x, weight, bias, gelu)


@torch.library.custom_op("elsa::onednn_linear_backward", mutates_args=())
def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor, of_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    found, of_weight, of_bias = onednn.linear_gradients(x, weight, None, (of_x, True, True), grad)
    assert of_weight is not None and of_bias is not None
    return x.new_empty(0) if found is None else found, of_weight.contiguous(), of_bias


@linear.register_fake
def _(x, weight, bias, gelu):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@_linear_backward.register_fake
def _(grad, x, weight, of_x):
    return x.new_empty(x.shape if of_x else (0,)), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])


def _linear_setup(ctx, inputs, output):
    x, weight, bias, gelu = inputs
    assert not gelu, "GELU of a layer that learns is an operator of its own"
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _linear_grad(ctx, grad):
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = _linear_backward(grad, x, weight, ctx.needs_input_grad[0])
    return of_x if ctx.needs_input_grad[0] else None, of_weight, of_bias if ctx.has_bias else None, None


linear.register_autograd(_linear_grad, setup_context=_linear_setup)


# ---- MLP


@torch.library.custom_op("elsa::mlp_by_rows", mutates_args=())
def mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, learns: bool,
    by_onednn: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(…, N), and what backward needs."""
    kept = mlps.kept_of_mlp(x, weight1) if learns else None
    out = mlps.mlp(mlps.products(by_onednn), x, weight1, bias1, weight2, bias2, None, kept=kept)
    return out, x.new_empty(0) if kept is None else kept


@torch.library.custom_op("elsa::mlp_by_rows_backward", mutates_args=())
def _mlp_backward(
    grad: Tensor, kept: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, by_onednn: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    before = kept if kept.ndim == 2 else None
    inputs = (x, weight1, bias1, weight2, None)
    found = mlps.mlp_gradients(mlps.products(by_onednn), inputs, before, (True,) * 5, grad.to(x.dtype).contiguous())
    of_x, of_weight1, of_bias1, of_weight2, of_bias2 = (t.contiguous() for t in found if t is not None)
    return of_x, of_weight1, of_bias1, of_weight2, of_bias2


@mlp.register_fake
def _(x, weight1, bias1, weight2, bias2, learns, by_onednn):
    kept = mlps.kept_of_mlp(x, weight1) if learns else None
    return x.new_empty(*x.shape[:-1], weight2.shape[0]), x.new_empty(0) if kept is None else kept


@_mlp_backward.register_fake
def _(grad, kept, x, weight1, bias1, weight2, by_onednn):
    shapes = (x.shape, weight1.shape, weight1.shape[:1], weight2.shape, weight2.shape[:1])
    return tuple(x.new_empty(shape) for shape in shapes)


def _mlp_setup(ctx, inputs, output):
    x, weight1, bias1, weight2, bias2, _, ctx.by_onednn = inputs
    ctx.save_for_backward(output[1], x, weight1, bias1, weight2)
    ctx.has_bias = bias1 is not None, bias2 is not None


def _mlp_grad(ctx, grad, _):
    of_x, of_weight1, of_bias1, of_weight2, of_bias2 = _mlp_backward(grad, *ctx.saved_tensors, ctx.by_onednn)
    first, second = ctx.has_bias
    return of_x, of_weight1, of_bias1 if first else None, of_weight2, of_bias2 if second else None, None, None


mlp.register_autograd(_mlp_grad, setup_context=_mlp_setup)
