"""What is timed: the operators, what they compete with, and the two measures of the machine.

A maker takes a shape, a batch, a type and a device and returns a function and its inputs; an absent ghost is None.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from elsa.kernels import elsa_attention, hadamard_convolution

from .shapes import HadamardShape, Shape

CONTESTANTS = ("unfold", "depthwise", "flex")
Contestant = tuple[Callable, list[Tensor | None]]


def random_inputs(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
    taps = shape.kernel**2
    value = torch.randn(batch, shape.height, shape.width, shape.channels, device=device).to(dtype)
    logits = torch.randn(batch, shape.height, shape.width, shape.heads * taps, device=device).to(dtype)
    ghosts = (torch.randn(shape.channels, taps, device=device) if on else None for on in (shape.mul, shape.add))
    return [value, logits, *ghosts]


def operator(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device, backend: str) -> Contestant:
    return (
        lambda *inputs: elsa_attention(*inputs, num_heads=shape.heads, kernel_size=shape.kernel, backend=backend),
        random_inputs(shape, batch, dtype, device),
    )


def unfold(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> Contestant:
    """The published formula: channels first, all neighbourhoods written out."""
    value, logits, mul, add = random_inputs(shape, batch, dtype, device)
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


def depthwise(
    shape: Shape, batch: int, dtype: torch.dtype, device: torch.device, layout: torch.memory_format
) -> Contestant:
    """PyTorch's depthwise convolution with the same window: the static counterpart."""
    image = torch.randn(batch, shape.channels, shape.height, shape.width, device=device)
    image = image.to(dtype, memory_format=layout)
    weight = torch.randn(shape.channels, 1, shape.kernel, shape.kernel, device=device).to(dtype)
    return lambda i, w: F.conv2d(i, w, padding=shape.kernel // 2, groups=shape.channels), [image, weight]


def flex(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> Contestant:
    """Neighbourhood attention: every position attends to its K×K window. Compiled for each shape: slow to start."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    width, reach = shape.width, shape.kernel // 2

    def in_window(b, h, query, key):
        rows = (query // width - key // width).abs() <= reach
        return rows & ((query % width - key % width).abs() <= reach)

    length = shape.height * width
    mask = create_block_mask(in_window, None, None, length, length, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)
    size = (batch, shape.heads, length, shape.channels // shape.heads)
    inputs = [torch.randn(size, device=device).to(dtype) for _ in range(3)]
    return lambda q, k, v: compiled(q, k, v, block_mask=mask), inputs


def hadamard(
    shape: HadamardShape,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    backend: str,
    layout: torch.memory_format = torch.contiguous_format,
) -> Contestant:
    """The Hadamard convolution; by the backend "reference" it is PyTorch's product, grouped convolution and GELU on
    channels-last maps.

    Args:
        layout: of the weight.
    """
    if backend == "auto" and device.type == "cuda":
        backend = "cuda"  # which "auto" leaves to PyTorch
    packed = torch.randn(batch, shape.height, shape.width, 2 * shape.channels + shape.rest, device=device).to(dtype)
    weight = torch.randn(shape.channels, shape.group_width, shape.kernel, shape.kernel, device=device) / shape.kernel
    inputs = [packed, weight.to(dtype, memory_format=layout), torch.randn(shape.channels, device=device).to(dtype)]
    return lambda *given: hadamard_convolution(*given, backend=backend), [*inputs]


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], None], int]:
    """The measure of the machine's arithmetic: a product, and its multiply-adds."""
    side = 4096 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device).to(dtype)
    return lambda: torch.mm(matrix, matrix), side**3


def copy(device: torch.device) -> tuple[Callable[[], None], int]:
    """The measure of its memory: a copy of more than the caches hold, and the bytes read and written."""
    source = torch.zeros(1 << (28 if device.type == "cuda" else 26), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def timed_pass(function: Callable, inputs: list[Tensor | None], which: str) -> Callable[[], None]:
    """One call to be timed.

    Args:
        which: "forward"; "backward": the gradients of all inputs, with the forward pass; "gradients": without it.
    """
    if which == "forward":

        def forward() -> None:
            with torch.no_grad():
                function(*inputs)

        return forward
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    wanted = [leaf for leaf in leaves if leaf is not None]

    def outputs() -> tuple[Tensor, ...]:
        found = function(*leaves)
        return found if isinstance(found, tuple) else (found,)

    made: tuple[Tensor, ...] | None = outputs()
    given = [torch.randn_like(one) for one in made or ()]
    keep = which == "gradients"
    if not keep:
        made = None
    return lambda: _discard(torch.autograd.grad(made or outputs(), wanted, given, retain_graph=keep))


def _discard(result: object) -> None:
    """Only the time counts."""
