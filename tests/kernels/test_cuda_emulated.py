"""The CUDA kernels against the reference: executed by the emulator everywhere, and by a GPU where there is one."""

from __future__ import annotations

import emulation
import pytest
import torch
from devices import DTYPES, TOLERANCE, operator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elsa.kernels.reference import elsa_attention_reference

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler for the emulated kernels")


def attention(device: str, value, logits, mul, add, heads: int, kernel: int, dilation: int, grad):
    """Output and gradients of the device code, as float64 on the CPU; ghosts go in as the accumulation type."""
    ops = operator(device)
    accumulate = torch.float64 if value.dtype == torch.float64 else torch.float32
    mul, add = (None if ghost is None else ghost.to(device, accumulate) for ghost in (mul, add))
    inputs = (value.to(device), logits.to(device), mul, add, heads, kernel, dilation)
    results = (ops.attention_forward(*inputs), *ops.attention_backward(grad.to(device), *inputs))
    return [result.double().cpu() for result in results]


def reference(value, logits, mul, add, heads: int, kernel: int, dilation: int, grad):
    """The same in double precision, by autograd on the specification."""
    tensors = [None if x is None else x.double().requires_grad_() for x in (value, logits, mul, add)]
    out = elsa_attention_reference(*tensors, heads, kernel, dilation)
    present = [x for x in tensors if x is not None]
    grads = iter(torch.autograd.grad(out, present, grad.double()))
    return [out.detach(), *(torch.empty(0) if x is None else next(grads) for x in tensors)]


def assert_equal(got, expected, tolerance: float) -> None:
    for name, a, b in zip(("out", "dvalue", "dlogits", "dmul", "dadd"), got, expected, strict=True):
        assert a.shape == b.shape, f"{name}: {tuple(a.shape)}, expected {tuple(b.shape)}"
        error = (a - b).abs().max().item() if b.numel() else 0.0
        largest = max(b.abs().max().item(), 0.5) if b.numel() else 1.0  # gradients of logits may cancel to 0
        assert error <= tolerance * largest, f"{name}: error {error:.2e} where the largest value is {largest:.2e}"


def draw(seed: int, batch, height, width, heads, head_channels, kernel, dtype, mul, add):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    channels = heads * head_channels
    value, grad = (normal(batch, height, width, channels).to(dtype) for _ in range(2))
    logits = normal(batch, height, width, heads * kernel**2).to(dtype)
    ghosts = [normal(channels, kernel**2).float().double() if present else None for present in (mul, add)]
    return value, logits, *ghosts, grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mul, add", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_every_kernel(device, kernel, mul, add, dtype):
    """Kernel size × ghosts × type, on a map of one tile and a bit, with whole vectors and more than one head."""
    shape = (1, 9, 18, 1, 32) if kernel == 7 else (2, 5, 3, 2, 8)
    value, logits, *ghosts, grad = draw(kernel, *shape, kernel, dtype, mul, add)
    arguments = (value, logits, *ghosts, shape[3], kernel, 1, grad)
    assert_equal(attention(device, *arguments), reference(*arguments), TOLERANCE[dtype])


# Work per drawn example is bounded: the emulator runs a few million CUDA threads per second.
shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 11), st.integers(1, 19), st.integers(1, 32), st.integers(1, 41),
    st.sampled_from([1, 3, 5, 7, 9, 11]), st.integers(1, 4),
).filter(lambda s: s[0] * s[1] * s[2] * s[3] * s[5] ** 2 * (s[4] + 31) // 32 <= 60_000)  # fmt: skip


@settings(
    max_examples=120, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
@given(shape=shapes, dtype=st.sampled_from(DTYPES), mul=st.booleans(), add=st.booleans(), seed=st.integers(0, 99))
def test_drawn_shapes(device, shape, dtype, mul, add, seed):
    """1×1 maps, maps smaller than the kernel, partial tiles, odd channel counts, dilations, many heads, batches."""
    *sizes, kernel, dilation = shape
    value, logits, *ghosts, grad = draw(seed, *sizes, kernel, dtype, mul, add)
    arguments = (value, logits, *ghosts, sizes[3], kernel, dilation, grad)
    assert_equal(attention(device, *arguments), reference(*arguments), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["k7", "k5_ghost", "k3_dil2", "k3_mul", "k5_plain", "tiny_map"])
def test_golden(device, name, dtype, published_case):
    """What the published code computed."""
    case = published_case(name)
    value, logits, mul, add = case.inputs
    got = attention(device, value.to(dtype), logits.to(dtype), mul, add, *case.sizes, case.gradient.to(dtype))
    assert_equal(got, [torch.empty(0) if x is None else x.double() for x in case.results], 1e-5)


@pytest.mark.parametrize(
    "shape", [pytest.param((130, 1, 1, 64, 1), id="output"), pytest.param((30, 1, 2, 8, 1024), id="ghost-sums")]
)
def test_blocks_loop_over_tiles(device, shape):
    """More tiles than blocks for the output, or than slots of partial sums."""
    value, logits, _, add, grad = draw(5, *shape, 3, torch.float32, False, True)
    arguments = (value, logits, None, add, shape[3], 3, 1, grad)
    assert_equal(attention(device, *arguments), reference(*arguments), 1e-5)


def test_edges(device):
    """An empty batch, non-contiguous inputs, unaligned storage, −∞ among the logits; and twice gives the same bits."""
    value, logits, mul, add, grad = draw(1, 2, 5, 6, 2, 8, 3, torch.float32, True, True)
    got = attention(device, value[:0], logits[:0], mul, add, 2, 3, 1, grad[:0])
    assert got[0].shape == value[:0].shape
    assert not got[3].any() and got[3].shape == mul.shape

    expected = reference(value, logits, mul, add, 2, 3, 1, grad)
    strided = [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in (value, logits, grad)]
    assert_equal(attention(device, *strided[:2], mul, add, 2, 3, 1, strided[2]), expected, 1e-5)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in (value, logits, grad)]
    assert_equal(attention(device, *shifted[:2], mul, add, 2, 3, 1, shifted[2]), expected, 1e-5)

    logits[..., 4] = -torch.inf
    arguments = (value, logits, mul, add, 2, 3, 1, grad)
    got = attention(device, *arguments)
    assert_equal(got, reference(*arguments), 1e-5)
    assert all(torch.equal(a, b) for a, b in zip(got, attention(device, *arguments), strict=True))


def test_bad_arguments(device):
    """Refused before a kernel sees them, with the values named."""
    value, logits, mul, add, _ = (x.to(device) for x in draw(1, 1, 4, 4, 2, 4, 3, torch.float32, True, True))
    mul, add = mul.float(), add.float()
    forward = operator(device).attention_forward
    for arguments, words in [
        ((value, logits, mul, add, 2, 4, 1), "kernel_size"),
        ((value, logits, mul, add, 3, 3, 1), "num_heads"),
        ((value, logits, mul, add, 2, 3, 0), "dilation"),
        ((value, logits, mul, add, 2, 5, 1), "logits"),
        ((value, logits, mul[1:], add, 2, 3, 1), "ghost_mul"),
        ((value, logits.double(), mul, add, 2, 3, 1), "logits"),
        ((value[0], logits, mul, add, 2, 3, 1), "value"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            forward(*arguments)
