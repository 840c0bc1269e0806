"""The Hadamard convolution's CPU kernels against PyTorch's own operators in float64: every type and instruction set."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Relative to the largest value of the compared tensor, or to the size of what is added up in it where that cancels.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SCALE = 0.7


@dataclass(frozen=True)
class Case:
    """The sizes of one call; `rest` counts the channels beside query and key."""

    batch: int
    height: int
    width: int
    groups: int
    group_width: int
    kernel: int
    dilation: int = 1
    rest: int = 5
    bias: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def channels(self) -> int:
        return self.groups * self.group_width

    def tensors(self, seed: int = 0) -> dict[str, torch.Tensor | None]:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

        position, taps = (self.batch, self.height, self.width), self.kernel**2
        weight = random(self.channels, self.group_width, self.kernel, self.kernel)
        return {
            "packed": random(*position, 2 * self.channels + self.rest),
            "weight": weight / (self.group_width * taps) ** 0.5,
            "bias": random(self.channels) if self.bias else None,
            "grad_local": random(*position, self.channels),
            "grad_rest": random(*position, self.rest),
        }


def run(case: Case, given: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Results and gradients straight from the C++ operators."""
    packed, weight = given["packed"], given["weight"]
    local, before = torch.ops.elsa.hadamard_forward(packed, weight, given["bias"], SCALE, case.dilation, True)
    gradients = torch.ops.elsa.hadamard_backward(
        given["grad_local"], given["grad_rest"], packed, weight, before, SCALE, case.dilation
    )
    return dict(zip(("local", "before", "packed", "weight", "bias"), (local, before, *gradients), strict=True))


def expect(case: Case, given: dict[str, torch.Tensor | None], before: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same in float64. The gradients are those at the `before` that the operator has rounded and saved."""
    packed, weight = (given[name].double().requires_grad_() for name in ("packed", "weight"))
    bias = torch.zeros(case.channels, dtype=torch.float64) if given["bias"] is None else given["bias"].double()
    bias.requires_grad_()
    query, key, rest = packed.split([case.channels, case.channels, case.rest], -1)
    exact = functional.conv2d(
        (query * key * SCALE).permute(0, 3, 1, 2),
        weight,
        bias,
        padding=case.dilation * (case.kernel // 2),
        dilation=case.dilation,
        groups=case.groups,
    ).permute(0, 2, 3, 1)
    saved = before.double().requires_grad_()
    functional.gelu(saved).backward(given["grad_local"].double())
    absent = torch.zeros_like(rest) if given["grad_rest"] is None else given["grad_rest"].double()
    torch.autograd.backward((exact, rest), (saved.grad, absent))
    found = {"local": functional.gelu(exact), "before": exact}
    return found | {"packed": packed.grad, "weight": weight.grad, "bias": bias.grad}


def check(case: Case, **given: torch.Tensor | None) -> None:
    tensors = case.tensors() | given
    found = run(case, tensors)
    for name, expected in expect(case, tensors, found["before"]).items():
        assert found[name].dtype == case.dtype
        assert found[name].shape == expected.shape
        if expected.numel() == 0:
            continue
        terms = case.batch * case.height * case.width if name in ("weight", "bias") else 1
        largest = max(1.0, terms**0.5, expected.abs().max().item())
        error = (found[name].double() - expected).abs().max().item() / largest
        assert error <= TOLERANCE[case.dtype], f"{name} of {case}: relative error {error:.2e}"


# Widths that fill vectors (kernels in lanes) and ones that do not; channels and columns that are no multiple of what is
# computed at once; maps smaller than the kernel.
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_every_kernel(instruction_set, kernel, dtype):
    for sizes in (
        (2, 9, 30, 8, 4),
        (1, 6, 14, 3, 8),
        (1, 1, 1, 5, 4),
        (1, 4, 17, 1, 16),
        (2, 5, 3, 7, 1),
        (1, 3, 9, 9, 2),
    ):
        check(Case(*sizes, kernel, dtype=dtype))
    check(Case(1, 5, 8, 4, 3, kernel, rest=0, bias=False, dtype=dtype))
    check(Case(1, 8, 15, 2, 32, kernel, rest=40, dtype=dtype))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_shapes(instruction_set, data):
    draw = data.draw
    case = Case(
        batch=draw(st.integers(0, 3), "batch"),
        height=draw(st.integers(1, 40), "height"),
        width=draw(st.integers(1, 31), "width"),
        groups=draw(st.integers(1, 9), "groups"),
        group_width=draw(st.sampled_from([1, 2, 3, 4, 5, 8, 16]), "group_width"),
        kernel=draw(st.sampled_from([1, 3, 5, 7, 9, 11]), "kernel"),
        dilation=draw(st.integers(1, 3), "dilation"),
        rest=draw(st.sampled_from([0, 1, 16, 33]), "rest"),
        bias=draw(st.booleans(), "bias"),
        dtype=draw(st.sampled_from(TYPES), "dtype"),
    )
    check(case)


def test_dilation_larger_than_the_map(instruction_set, error_of):
    for kernel, width in ((3, 4), (9, 3)):
        far = Case(2, 5, 9, 2, width, kernel, dilation=2**31)
        tensors = far.tensors()
        near = Case(2, 5, 9, 2, width, kernel, dilation=9)  # PyTorch pads by the dilation
        found = run(far, tensors)
        for name, expected in expect(near, tensors, found["before"]).items():
            assert error_of(found[name], expected) < 1e-5, name


def test_a_kernel_that_only_its_center_fits(instruction_set):
    """1023 × 1023 taps on one position: all but one lie outside, and their gradient is zero."""
    packed, weight = torch.tensor([2.0, 3.0]).view(1, 1, 1, 2), torch.ones(1, 1, 1023, 1023)
    _, before = torch.ops.elsa.hadamard_forward(packed, weight, None, 1.0, 1, True)
    assert before.item() == 6.0
    ones = torch.ones(1, 1, 1, 1)
    _, grad_weight, _ = torch.ops.elsa.hadamard_backward(ones, None, packed, weight, before, 1.0, 1)
    assert grad_weight.nonzero().tolist() == [[0, 0, 511, 511]]
    assert grad_weight.sum().item() == pytest.approx(6.0, abs=1e-5)  # the slope of GELU is 1 there


@pytest.mark.parametrize(("kernel", "width"), [(1, 1), (3, 4), (7, 8)])
def test_gelu_is_exact_to_one_millionth(instruction_set, kernel, width):
    z = torch.linspace(-8, 8, 2000 * width).view(1, -1, 20, width)
    packed = torch.cat([z, torch.ones_like(z)], -1)
    weight = torch.zeros(width, width, kernel, kernel)
    weight[range(width), range(width), kernel // 2, kernel // 2] = 1
    local, before = torch.ops.elsa.hadamard_forward(packed, weight, None, 1.0, 1, True)
    assert torch.equal(before, z)
    exact = z.double().requires_grad_()
    functional.gelu(exact).sum().backward()
    assert (local - functional.gelu(z.double())).abs().max() < 1e-6
    slope, _, _ = torch.ops.elsa.hadamard_backward(torch.ones_like(z), None, packed, weight, before, 1.0, 1)
    assert (slope[..., :width] - exact.grad).abs().max() < 1e-6


@pytest.mark.parametrize(("kernel", "width"), [(3, 4), (7, 8), (5, 3)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_its_window_alone(instruction_set, kernel, width, value):
    packed = torch.ones(1, 12, 17, 2 * 3 * width)
    packed[0, 5, 6, width] = value  # the first channel of the second group
    local, _ = torch.ops.elsa.hadamard_forward(
        packed, torch.ones(3 * width, width, kernel, kernel), None, 1.0, 1, False
    )
    reached = torch.zeros(1, 12, 17, 3 * width, dtype=torch.bool)
    reach = kernel // 2
    reached[:, 5 - reach : 6 + reach, 6 - reach : 7 + reach, width : 2 * width] = True
    assert torch.equal(~local.isfinite(), reached)
    assert torch.equal(local.isnan(), reached if value != value else torch.zeros_like(reached))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_independent_of_the_number_of_threads(instruction_set, dtype):
    before = torch.get_num_threads()
    for case in (Case(3, 30, 17, 10, 4, 7, dtype=dtype), Case(2, 31, 9, 6, 3, 5, dtype=dtype)):
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(run(case, case.tensors()))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize(("kernel", "width"), [(7, 4), (3, 8), (5, 3)])
def test_no_reads_outside(instruction_set, kernel, width):
    """Neighbours of the inputs in memory are NaN and must not be seen."""
    case = Case(1, 5, 15, 5, width, kernel)
    tensors, guarded = case.tensors(), {}
    for name, tensor in tensors.items():
        memory = torch.full((tensor.numel() + 128,), float("nan"))
        guarded[name] = memory[64 : 64 + tensor.numel()].view(tensor.shape).copy_(tensor)
    found, expected = run(case, guarded), run(case, tensors)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_strided_arguments(instruction_set):
    case = Case(2, 6, 9, 4, 4, 3)
    tensors = case.tensors()
    strided = {name: torch.stack([tensor, tensor], -1)[..., 0] for name, tensor in tensors.items()}
    strided["weight"] = tensors["weight"].to(memory_format=torch.channels_last)
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    found, expected = run(case, strided), run(case, tensors)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_not_wanted_or_absent(instruction_set):
    case = Case(1, 5, 9, 3, 4, 7)
    tensors = case.tensors()
    local, before = torch.ops.elsa.hadamard_forward(
        tensors["packed"], tensors["weight"], tensors["bias"], SCALE, 1, False
    )
    assert before.shape == (0,)
    assert torch.equal(local, run(case, tensors)["local"])
    check(case, grad_rest=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"packed": torch.zeros(1, 3, 2, 15)},
            r"packed must hold 8 channels of query and of key, got shape \[1, 3, 2, 15\]",
        ),
        ({"packed": torch.zeros(3, 2, 16)}, r"packed must be \[B, H, W, D\], got shape \[3, 2, 16\]"),
        ({"packed": torch.zeros(1, 0, 2, 21)}, "packed needs at least one position"),
        (
            {"packed": torch.zeros(1, 3, 2, 21, dtype=torch.int32)},
            "packed must be float16, bfloat16, float32 or float64",
        ),
        ({"weight": torch.zeros(8, 4, 2, 2)}, "kernel_size must be odd and positive, got 2"),
        ({"weight": torch.zeros(8, 4, 3, 5)}, r"weight must be \[C_q, width, K, K\], got shape \[8, 4, 3, 5\]"),
        ({"weight": torch.zeros(8, 3, 3, 3)}, "the group width must divide the channels: 8 channels, 3 a group"),
        ({"weight": torch.zeros(0, 4, 3, 3)}, "weight needs at least one channel"),
        ({"weight": torch.zeros(8, 4, 3, 3).double()}, "weight must have dtype float32, got float64"),
        ({"bias": torch.zeros(7)}, r"bias must have shape \[8\], got \[7\]"),
        ({"bias": torch.zeros(8).half()}, "bias must have dtype float32, got float16"),
        ({"grad_local": torch.zeros(1, 3, 2, 7)}, r"grad_local must have shape \[1, 3, 2, 8\], got \[1, 3, 2, 7\]"),
        ({"grad_rest": torch.zeros(1, 3, 2, 8)}, r"grad_rest must have shape \[1, 3, 2, 5\], got \[1, 3, 2, 8\]"),
        ({"before": torch.zeros(0)}, r"before must have shape \[1, 3, 2, 8\], got \[0\]"),
        ({"dilation": 0}, "dilation must be at least 1, got 0"),
    ],
)
def test_refusals(compiled_cpu, change, message):
    given = {**Case(1, 3, 2, 2, 4, 3).tensors(), "before": torch.zeros(1, 3, 2, 8), "dilation": 1} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.elsa.hadamard_forward(given["packed"], given["weight"], given["bias"], SCALE, given["dilation"], True)
        torch.ops.elsa.hadamard_backward(
            *(given[name] for name in ("grad_local", "grad_rest", "packed", "weight", "before")),
            SCALE,
            given["dilation"],
        )
