"""Graphs for other runtimes: made of PyTorch's plain operators alone, few of them, for maps of any size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import Tensor, nn

_asked = 0


@contextmanager
def portable() -> Iterator[None]:
    """In here ``torch.export`` gives graphs that run where the compiled operators are not installed: "auto" is the
    reference, and attention is its formula. ``torch.onnx.export`` needs no asking."""
    global _asked
    _asked += 1
    try:
        yield
    finally:
        _asked -= 1


def portable_program(
    network: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """``torch.export.export`` within ``portable``, for sizes that may be one as well.

    Args:
        inputs: of sizes that are not alike, and so large that no map within has one position or one window; nothing is
            computed of them.
        dynamic_shapes: as ``torch.export`` takes them.
    """
    with torch.no_grad(), portable(), sizes_may_be_one():
        program = torch.export.export(network, inputs, dynamic_shapes=dynamic_shapes, strict=False)
    # How a convolution's input lies in memory is looked up by asking whether there is one image; nothing hangs on it.
    program._guards_code = [guard for guard in program._guards_code if not re.search(r"(>|!=) 1$", guard)]
    return program


def sizes_may_be_one() -> AbstractContextManager[None]:
    """In here ``torch.export`` and AOTInductor take no open size to be other than one, as ONNX's exporter does."""
    return torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def is_portable() -> bool:
    """Whether a graph is exported that must hold plain operators alone."""
    return torch.compiler.is_exporting() and (_asked > 0 or torch.onnx.is_in_onnx_export())


def gathered_attention(
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    attn_drop: float = 0.0,
) -> Tensor:
    """``elsa_attention_reference``, with its arguments, in some forty nodes of a graph instead of some seven per tap.

    The K² neighbours of every position are gathered, K² times the memory of ``value``, and one matrix product sums
    them. The additive ghost head does not depend on the logits: it is a depthwise convolution.
    """
    height, width, channels = value.shape[1:]
    taps, per_head = kernel_size**2, channels // num_heads
    reach = dilation * (kernel_size // 2)
    compute = value.dtype if value.dtype == torch.float64 else torch.float32
    dtype, value = value.dtype, value.to(compute)

    steps = dilation * torch.arange(kernel_size, device=value.device)
    rows = torch.arange(height, device=value.device)[:, None] + steps
    columns = torch.arange(width, device=value.device)[:, None] + steps
    places = rows[:, None, :, None] * (width + 2 * reach) + columns[None, :, None, :]  # (H, W, K, K), in the padded map

    padded = F.pad(value, (0, 0, reach, reach, reach, reach)).flatten(1, 2).unflatten(2, (num_heads, per_head))
    near = padded.transpose(1, 2).index_select(2, places.flatten()).unflatten(2, (-1, taps))  # (B, G, H·W, K², C/G)
    if ghost_mul is not None:
        near = near * ghost_mul.to(compute).reshape(num_heads, 1, per_head, taps).transpose(2, 3)
    attn = logits.to(compute).unflatten(3, (num_heads, taps)).flatten(1, 2).softmax(-1)
    attn = F.dropout(attn, attn_drop, attn_drop > 0)
    out = (attn.transpose(1, 2).unsqueeze(3) @ near).squeeze(3).transpose(1, 2).reshape(value.shape)
    if ghost_add is not None:
        kernels = ghost_add.to(compute).reshape(channels, 1, kernel_size, kernel_size)
        same = F.conv2d(value.permute(0, 3, 1, 2), kernels, padding=reach, dilation=dilation, groups=channels)
        out = out + same.permute(0, 2, 3, 1)
    return out.to(dtype)
