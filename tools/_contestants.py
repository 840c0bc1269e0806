"""What tools/benchmark.py measures: the shapes of the released networks, and the contestants for one shape.

A maker takes a shape, a batch and a type and returns a function and its inputs; an absent ghost is None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from elsa.kernels import elsa_attention


@dataclass(frozen=True)
class Shape:
    """The sizes of one call, without the batch."""

    name: str
    height: int
    width: int
    channels: int
    heads: int
    kernel: int = 7
    mul: bool = False
    add: bool = True

    def multiply_adds(self, batch: int) -> int:
        return batch * self.height * self.width * self.channels * self.kernel**2


def swin(variant: str, dim: int, heads: int, height: int, width: int) -> list[Shape]:
    """The first three stages, at strides 4, 8 and 16."""
    maps = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16)]
    return [Shape(f"{variant} {s + 1}", *maps[s], dim << s, heads << s) for s in range(3)]


GROUPS = {
    "swin_t_224": swin("Swin-T/S", 96, 3, 224, 224),
    "swin_b_224": swin("Swin-B", 128, 4, 224, 224),
    "swin_t_800": swin("Swin-T/S@800", 96, 3, 800, 1333),
    "swin_b_800": swin("Swin-B@800", 128, 4, 800, 1333),
    "volo_224": [
        Shape(f"VOLO-{name}", 28, 28, dim, dim // 32, 5, True, True)
        for name, dim in (("D1", 192), ("D2/D3", 256), ("D4/D5", 384))
    ],
    "plain": [Shape("no ghost", 56, 56, 96, 3, add=False)],
    "scaling": [Shape(f"{size}²", size, size, 96, 3) for size in (56, 112, 224, 448)],
}
DEFAULT_GROUPS = ("swin_t_224", "volo_224", "plain")


# ---- contestants ---------------------------------------------------------------------------------------------------


def random_inputs(shape: Shape, batch: int, dtype: torch.dtype) -> list[Tensor | None]:
    taps = shape.kernel**2
    value = torch.randn(batch, shape.height, shape.width, shape.channels).to(dtype)
    logits = torch.randn(batch, shape.height, shape.width, shape.heads * taps).to(dtype)
    return [value, logits, *(torch.randn(shape.channels, taps) if on else None for on in (shape.mul, shape.add))]


def operator(shape: Shape, batch: int, dtype: torch.dtype, backend: str) -> tuple[Callable, list[Tensor | None]]:
    return (
        lambda *inputs: elsa_attention(*inputs, num_heads=shape.heads, kernel_size=shape.kernel, backend=backend),
        random_inputs(shape, batch, dtype),
    )


def unfold(shape: Shape, batch: int, dtype: torch.dtype) -> tuple[Callable, list[Tensor | None]]:
    """The published formula: channels first, all neighbourhoods written out."""
    value, logits, mul, add = random_inputs(shape, batch, dtype)
    taps, heads = shape.kernel**2, shape.heads

    def formula(value: Tensor, logits: Tensor, mul: Tensor | None, add: Tensor | None) -> Tensor:
        weights = logits.view(batch, heads, 1, taps, -1).softmax(3)
        if mul is not None:
            weights = weights * mul.to(dtype).view(1, heads, -1, taps, 1)
        if add is not None:
            weights = weights + add.to(dtype).view(1, heads, -1, taps, 1)
        patches = F.unfold(value, shape.kernel, padding=shape.kernel // 2)
        patches = patches.view(batch, heads, -1, taps, weights.shape[-1])
        return (weights * patches).sum(3).view_as(value)

    return formula, [value.permute(0, 3, 1, 2).contiguous(), logits.permute(0, 3, 1, 2).contiguous(), mul, add]


def depthwise(shape: Shape, batch: int, dtype: torch.dtype, layout: torch.memory_format):
    image = torch.randn(batch, shape.channels, shape.height, shape.width).to(dtype, memory_format=layout)
    weight = torch.randn(shape.channels, 1, shape.kernel, shape.kernel).to(dtype)
    return lambda i, w: F.conv2d(i, w, padding=shape.kernel // 2, groups=shape.channels), [image, weight]


def flex(shape: Shape, batch: int, dtype: torch.dtype) -> tuple[Callable, list[Tensor | None]]:
    """Neighbourhood attention: every position attends to its K×K window. Compiled for each shape: slow to start."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    width, reach = shape.width, shape.kernel // 2

    def in_window(b, h, query, key):
        rows = (query // width - key // width).abs() <= reach
        return rows & ((query % width - key % width).abs() <= reach)

    length = shape.height * width
    mask = create_block_mask(in_window, None, None, length, length, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    inputs = [torch.randn(batch, shape.heads, length, shape.channels // shape.heads).to(dtype) for _ in range(3)]
    return lambda q, k, v: compiled(q, k, v, block_mask=mask), inputs


def training_step(function: Callable, inputs: list[Tensor | None], backward: bool) -> Callable[[], None]:
    """One call to be timed: the forward pass alone, or with the gradients of all inputs."""
    if not backward:

        def forward() -> None:
            with torch.no_grad():
                function(*inputs)

        return forward
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    wanted = [leaf for leaf in leaves if leaf is not None]
    with torch.no_grad():
        gradient = torch.randn_like(function(*inputs))

    def both() -> None:
        torch.autograd.grad(function(*leaves), wanted, gradient)

    return both
