"""The CUDA kernels of the Hadamard convolution against PyTorch's own operators: executed by the emulator everywhere,
and by a GPU where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import emulation
import pytest
import torch
import torch.nn.functional as F
from devices import DTYPES, TOLERANCE, operator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

NAMES = ("local", "before", "dpacked", "dweight", "dbias")
SCALE = 0.7
pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler for the emulated kernels")


@dataclass
class Case:
    """The inputs of both passes; bias and grad_rest may be None."""

    packed: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_local: Tensor
    grad_rest: Tensor | None
    dilation: int

    @property
    def channels(self) -> int:
        return self.weight.shape[0]

    def run(self, device: str) -> list[Tensor]:
        """local, before and the three gradients, as float64 on the CPU."""
        inputs = [None if x is None else x.to(device) for x in (self.packed, self.weight, self.bias)]
        grads = [None if x is None else x.to(device) for x in (self.grad_local, self.grad_rest)]
        packed, weight, bias = inputs
        local, before = operator(device).hadamard_forward(packed, weight, bias, SCALE, self.dilation, True)
        alone, nothing = operator(device).hadamard_forward(packed, weight, bias, SCALE, self.dilation, False)
        assert nothing.shape == (0,) and torch.equal(alone.nan_to_num(), local.nan_to_num())
        results = operator(device).hadamard_backward(*grads, packed, weight, before, SCALE, self.dilation)
        assert all(x.dtype == packed.dtype for x in (local, before, *results))
        return [result.double().cpu() for result in (local, before, *results)]

    def reference(self) -> list[Tensor]:
        """The same in double precision, by autograd on a convolution."""
        bias = self.weight.new_zeros(self.channels) if self.bias is None else self.bias
        packed, weight, bias = (x.double().requires_grad_() for x in (self.packed, self.weight, bias))
        sizes = [self.channels, self.channels, packed.shape[-1] - 2 * self.channels]
        query, key, rest = packed.split(sizes, -1)
        before = F.conv2d(
            (query * key * SCALE).permute(0, 3, 1, 2), weight, bias, dilation=self.dilation,
            padding=self.dilation * (weight.shape[-1] // 2), groups=self.channels // weight.shape[1],
        ).permute(0, 2, 3, 1)  # fmt: skip
        local = F.gelu(before)
        grad_rest = torch.zeros_like(rest) if self.grad_rest is None else self.grad_rest.double()
        grads = torch.autograd.grad((local, rest), (packed, weight, bias), (self.grad_local.double(), grad_rest))
        return [local.detach(), before.detach(), *grads]


def draw(seed: int, batch, height, width, groups, group_width, kernel, dilation, rest, dtype, optional=True) -> Case:
    """`optional`: with bias and the gradient of the rest."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    channels, place = groups * group_width, (batch, height, width)
    weight = normal(channels, group_width, kernel, kernel) / (group_width**0.5 * kernel)
    return Case(
        normal(*place, 2 * channels + rest), weight, normal(channels) if optional else None,
        normal(*place, channels), normal(*place, rest) if optional else None, dilation,
    )  # fmt: skip


def assert_equal(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(NAMES, got, expected, strict=True):
        assert a.shape == b.shape, f"{name}: {tuple(a.shape)}, expected {tuple(b.shape)}"
        error = (a - b).abs().max().item() if b.numel() else 0.0
        largest = b.abs().max().clamp_min(1e-2).item() if b.numel() else 1.0
        assert error <= tolerance * largest, f"{name}: error {error:.2e} where the largest value is {largest:.2e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_width", [1, 3, 4, 8])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_every_kernel(device, kernel, group_width, dtype):
    """Kernel size × group width × type: more than a tile of rows and of positions, more than 16 channels."""
    height, width = (15, 34) if kernel == 7 else (16, 17)
    case = draw(kernel, 1, height, width, 24 // group_width, group_width, kernel, 1, 4, dtype)
    assert_equal(case.run(device), case.reference(), TOLERANCE[dtype])


# Work per drawn example is bounded, for the emulator's sake.
shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 31), st.integers(1, 37), st.integers(1, 9),
    st.sampled_from([1, 2, 3, 4, 4, 8, 8]), st.sampled_from([1, 3, 3, 5, 5, 7, 7, 11]),
    st.integers(1, 4), st.integers(0, 9),
).filter(lambda s: s[0] * s[1] * s[2] * s[3] * s[4] ** 2 * s[5] ** 2 <= 1_000_000)  # fmt: skip


@settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
@given(shape=shapes, dtype=st.sampled_from(DTYPES), optional=st.booleans(), seed=st.integers(0, 99))
def test_drawn_shapes(device, shape, dtype, optional, seed):
    """1×1 maps, maps smaller than the kernel, partial tiles and chunks, unaligned rows, dilations, no bias, no rest."""
    case = draw(seed, *shape, dtype, optional)
    assert_equal(case.run(device), case.reference(), TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [
    pytest.param((2100, 1, 1, 4, 4, 3), id="more-tiles-than-blocks"),
    pytest.param((7, 1, 2, 128, 8, 7), id="more-tiles-than-slots"),
])  # fmt: skip
def test_blocks_loop(device, shape):
    """More tiles than blocks of the convolution, or than slots of partial sums."""
    case = draw(5, *shape, 1, 0, torch.float32)
    assert_equal(case.run(device), case.reference(), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("group_width", [4, 8])
def test_not_finite(device, group_width, dtype):
    """Infinities and NaN reach exactly the positions and channels whose window holds them."""
    case = draw(3, 1, 15, 36, 16 // group_width, group_width, 5, 1, 0, dtype)
    finite = case.run(device)
    case.packed[0, 4, 9, 0], case.packed[0, 9, 20, 16 + 5] = torch.inf, torch.nan
    got, expected = case.run(device), case.reference()
    assert (~got[1].isfinite()).sum() == 2 * 25 * group_width
    assert torch.equal(got[1].isfinite(), expected[1].isfinite())
    assert torch.equal(got[1].isinf(), expected[1].isinf())
    assert torch.equal(got[0].isfinite(), expected[0].isfinite())
    where = expected[1].isfinite()
    assert (got[1] - expected[1])[where].abs().max() <= TOLERANCE[dtype] * expected[1][where].abs().max()

    case = draw(3, 1, 15, 36, 16 // group_width, group_width, 5, 1, 0, dtype)
    case.grad_local[0, 6, 10, 7] = torch.inf
    got, expected = case.run(device), case.reference()
    assert torch.equal(got[2].isfinite(), expected[2].isfinite())
    assert not got[3][7].isfinite().any() and not got[4][7].isfinite()
    others = [n for n in range(16) if n != 7]
    assert torch.equal(got[3][others], finite[3][others])


def test_half_precision_overflow(device):
    """What is beyond float16 becomes infinite in the product, as in PyTorch, and stays in its window."""
    case = draw(3, 1, 5, 20, 2, 4, 3, 1, 0, torch.float16)
    case.packed[0, 2, 7, 0] = case.packed[0, 2, 7, 8] = 400
    got = case.run(device)[1]
    expected = torch.zeros_like(got, dtype=torch.bool)
    expected[0, 1:4, 6:9, :4] = True
    assert torch.equal(~got.isfinite(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_edges(device, dtype):
    """An empty batch, strided and unaligned inputs, an absent bias and gradient; and twice gives the same bits."""
    case = draw(1, 2, 5, 6, 5, 4, 3, 1, 4, dtype)
    expected, got = case.reference(), case.run(device)
    assert_equal(got, expected, TOLERANCE[dtype])
    assert all(torch.equal(a, b) for a, b in zip(got, case.run(device), strict=True))

    def strided(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    def shifted(x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)

    for change in (strided, shifted):
        other = Case(*(change(x) if x.ndim == 4 else x for x in (case.packed, case.weight, case.bias, case.grad_local,
                                                                  case.grad_rest)), 1)  # fmt: skip
        assert_equal(other.run(device), expected, TOLERANCE[dtype])

    empty = Case(case.packed[:0], case.weight, case.bias, case.grad_local[:0], case.grad_rest[:0], 1).run(device)
    assert empty[0].shape == empty[1].shape == (0, 5, 6, 20) and empty[2].shape == (0, 5, 6, 44)
    assert not empty[3].any() and empty[3].shape == case.weight.shape and not empty[4].any()


def test_device_without_these_tensor_cores(monkeypatch):
    """Half precision goes to the generic kernels there."""
    torch.ops.load_library(emulation.library())
    case = draw(2, 1, 5, 17, 2, 4, 7, 1, 4, torch.float16)
    got = case.run("cpu")
    monkeypatch.setenv("CUEMU_CAPABILITY", "7")
    older = case.run("cpu")
    assert_equal(older, case.reference(), TOLERANCE[torch.float16])
    assert not all(torch.equal(a, b) for a, b in zip(got, older, strict=True))


def test_bad_arguments(device):
    """Refused before a kernel sees them, with the argument named."""
    case = draw(1, 1, 4, 4, 2, 4, 3, 1, 2, torch.float32)
    packed, weight, bias, grad, rest = (
        x.to(device) for x in (case.packed, case.weight, case.bias, case.grad_local, case.grad_rest)
    )
    forward, backward = operator(device).hadamard_forward, operator(device).hadamard_backward
    for arguments, words in [
        ((packed[0], weight, bias, 1.0, 1, True), "packed"),
        ((packed[..., :15], weight, bias, 1.0, 1, True), "packed"),
        ((packed, weight[..., :2, :2], bias, 1.0, 1, True), "kernel_size"),
        ((packed, weight.half(), bias, 1.0, 1, True), "weight"),
        ((packed, weight[:, :3], bias, 1.0, 1, True), "group width"),
        ((packed, weight, bias[1:], 1.0, 1, True), "bias"),
        ((packed, weight, bias, 1.0, 0, True), "dilation"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            forward(*arguments)
    for arguments, words in [
        ((grad[..., 1:], rest, packed, weight, grad, 1.0, 1), "grad_local"),
        ((grad, rest[..., 1:], packed, weight, grad, 1.0, 1), "grad_rest"),
        ((grad, rest, packed, weight, grad.double(), 1.0, 1), "before"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            backward(*arguments)
