"""GELU's CPU kernels against PyTorch's in float64: every type and instruction set, arrays of any length."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from elsa.kernels import library
from elsa.kernels.gelu import apply_gelu, gelu_gradient

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Absolute, of results below 10 in size: rounding of what is stored, in float32 the cubics.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
LENGTHS = (0, 1, 3, 7, 8, 15, 16, 17, 31, 33, 1000, 70001)


def draw(count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A gradient, and what is put into GELU: all of its curve."""
    generator = torch.Generator().manual_seed(count)
    grad, before = torch.randn(2, count, generator=generator, dtype=torch.float64)
    return grad.to(dtype), (2.5 * before).clamp(-8, 8).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_values_and_gradients(instruction_set, dtype):
    for count in LENGTHS:
        grad, before = draw(count, dtype)
        local = torch.ops.elsa.gelu_forward(before)
        gradient, again = torch.ops.elsa.gelu_backward(grad, before)
        assert local.dtype == gradient.dtype == dtype and torch.equal(local, again)
        assert largest(local.double() - F.gelu(before.double())) <= TOLERANCE[dtype]
        slope = torch.ops.aten.gelu_backward(grad.double(), before.double())
        assert largest(gradient.double() - slope) <= TOLERANCE[dtype] * max(1.0, largest(grad.double()))


def largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_far_from_zero(instruction_set, dtype):
    far = torch.tensor([-math.inf, -1e30, -100.0, 0.0, 100.0, 1e30, math.inf, math.nan] * 3, dtype=dtype)
    local = torch.ops.elsa.gelu_forward(far)
    gradient, _ = torch.ops.elsa.gelu_backward(torch.ones_like(far), far)
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0, 1e30, math.inf, math.nan] * 3, dtype=dtype)
    assert torch.allclose(local, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    slopes = torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, math.nan] * 3, dtype=dtype)
    assert torch.allclose(gradient, slopes, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_nothing_beyond_the_ends_is_touched(instruction_set):
    memory = torch.full((64,), math.nan)
    for first, count in ((1, 5), (3, 16), (2, 37)):
        memory[first : first + count] = 1.0
        local = torch.ops.elsa.gelu_forward(memory[first : first + count])
        assert local.isfinite().all()
        memory.fill_(math.nan)


def test_any_number_of_threads_gives_the_same_bits(instruction_set):
    grad, before = draw(300_001, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((torch.ops.elsa.gelu_forward(before), *torch.ops.elsa.gelu_backward(grad, before)))
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


def test_strided_maps_are_read_as_they_lie():
    grad, before = (tensor.view(20, 50).t() for tensor in draw(1000, torch.float32))
    gradient, local = torch.ops.elsa.gelu_backward(grad, before)
    assert torch.equal(local, torch.ops.elsa.gelu_forward(before.contiguous()))
    assert torch.equal(gradient, torch.ops.elsa.gelu_backward(grad.contiguous(), before.contiguous())[0])


def test_opcheck():
    grad, before = (tensor.view(4, 25) for tensor in draw(100, torch.float64))
    torch.library.opcheck(torch.ops.elsa.gelu_forward.default, (before.clone().requires_grad_(),))
    torch.library.opcheck(torch.ops.elsa.gelu_backward.default, (grad, before))
    assert torch.autograd.gradcheck(torch.ops.elsa.gelu_forward, (before.clone().requires_grad_(),))


@pytest.mark.parametrize(
    ("grad", "before", "said"),
    [
        (torch.ones(3), torch.ones(4), r"grad_local must have shape \[4\], got \[3\]"),
        (torch.ones(4), torch.ones(4).double(), "grad_local must have dtype float64, got float32"),
        (torch.ones(4), torch.ones(4, dtype=torch.int32), "before must be float16, bfloat16, float32 or float64"),
    ],
)
def test_what_does_not_fit_is_refused(grad, before, said):
    with pytest.raises(RuntimeError, match=said):
        torch.ops.elsa.gelu_backward(grad, before)


def test_without_the_library_it_is_pytorchs(monkeypatch):
    grad, before = draw(1000, torch.float32)
    ours = (apply_gelu(before), *gelu_gradient(grad, before))
    monkeypatch.setitem(library.OBSTACLES, "cpu", "not installed")
    plain = (apply_gelu(before), *gelu_gradient(grad, before))
    for found, expected in zip(ours, plain, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=4e-6)
