"""The door to the Hadamard convolution, its specification, and the operator as a citizen of torch."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from elsa.kernels import hadamard_convolution, library

CHANNELS, WIDTH, REST = 8, 4, 5


def small(dtype=torch.float32, batch=2, height=5, width=6, kernel=3, bias=True):
    shapes = [(batch, height, width, 2 * CHANNELS + REST), (CHANNELS, WIDTH, kernel, kernel), (CHANNELS,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes[: 2 + bias]]


def gradients(outputs, inputs):
    return torch.autograd.grad(sum(out.square().sum() for out in outputs), inputs)


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_specification_position_by_position(dilation):
    packed, weight, bias = (t.detach() for t in small(torch.float64, batch=1))
    local, rest = hadamard_convolution(packed, weight, bias, scale=0.5, dilation=dilation, backend="reference")
    query, key = packed[0, ..., :CHANNELS], packed[0, ..., CHANNELS : 2 * CHANNELS]
    for y, x, c in ((0, 0, 0), (2, 3, 5), (4, 5, 7)):
        before = bias[c].item()
        for row in range(3):
            for column in range(3):
                at = y + (row - 1) * dilation, x + (column - 1) * dilation
                if not (0 <= at[0] < 5 and 0 <= at[1] < 6):
                    continue
                for i in range(WIDTH):
                    source = (*at, c // WIDTH * WIDTH + i)
                    hadamard = query[source] * key[source] * 0.5
                    before += (weight[c, i, row, column] * hadamard).item()
        expected = before / 2 * (1 + math.erf(before / math.sqrt(2)))
        assert local[0, y, x, c].item() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(rest, packed[..., 2 * CHANNELS :])


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_everything_that_is_packed(compiled_cpu, error_of, bias):
    for scale, dilation in ((1.0, 1), (0.3, 2)):
        inputs = small(torch.float64, bias=bias)
        found, expected = (
            hadamard_convolution(*inputs, scale=scale, dilation=dilation, backend=backend)
            for backend in ("cpu", "reference")
        )
        assert all(error_of(a.detach(), b.detach()) < 1e-12 for a, b in zip(found, expected, strict=True))
        pairs = zip(gradients(found, inputs), gradients(expected, inputs), strict=True)
        assert all(error_of(a, b) < 1e-12 for a, b in pairs)


def test_one_output_alone_has_a_gradient(compiled_cpu):
    for used in (0, 1):
        inputs = small(torch.float64)
        found, expected = (
            torch.autograd.grad(
                hadamard_convolution(*inputs, backend=backend)[used].square().sum(), inputs, allow_unused=True
            )
            for backend in ("cpu", "reference")
        )
        assert torch.allclose(found[0], expected[0], atol=1e-12)
        for a, b in zip(found[1:], expected[1:], strict=True):
            assert torch.allclose(torch.zeros_like(a) if b is None else b, a, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(compiled_cpu, dtype, bias):
    inputs = [*small(dtype, bias=bias), *[None] * (not bias)]
    torch.library.opcheck(torch.ops.elsa.hadamard_forward.default, (*inputs, 0.5, 1, True))
    detached = [t if t is None else t.detach() for t in inputs]
    torch.library.opcheck(torch.ops.elsa.hadamard_forward.default, (*detached, 0.5, 1, False))
    local, before = torch.ops.elsa.hadamard_forward(*detached, 0.5, 1, True)
    for rest in (detached[0][..., 2 * CHANNELS :].contiguous(), None):
        arguments = (torch.randn_like(local), rest, *detached[:2], before, 0.5, 1)
        torch.library.opcheck(torch.ops.elsa.hadamard_backward.default, arguments)


def test_a_gradient_needs_what_was_saved(compiled_cpu):
    with pytest.raises(RuntimeError, match="needs save=True"):
        torch.ops.elsa.hadamard_forward(*small(), 1.0, 1, False)


def test_double_backward_is_refused(compiled_cpu):
    inputs = small()
    local, _ = hadamard_convolution(*inputs, backend="cpu")
    (grad,) = torch.autograd.grad(local.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative; pass backend='reference'"):
        grad.sum().backward()


def test_compile_fullgraph_with_dynamic_sizes(compiled_cpu, error_of):
    torch._dynamo.reset()
    step = torch.compile(lambda *a: hadamard_convolution(*a, scale=0.5), fullgraph=True, dynamic=True)
    for shape in ((2, 5, 6), (3, 7, 4), (4, 9, 9)):
        inputs = small(batch=shape[0], height=shape[1], width=shape[2])
        found = gradients(step(*inputs), inputs)
        expected = gradients(hadamard_convolution(*inputs, scale=0.5, backend="reference"), inputs)
        assert all(error_of(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_autocast_is_that_of_a_convolution(compiled_cpu):
    packed, weight, bias = small()
    with torch.autocast("cpu", torch.bfloat16):
        local, rest = hadamard_convolution(packed, weight, bias, backend="cpu")
        direct, _ = torch.ops.elsa.hadamard_forward(packed, weight, bias, 1.0, 1, True)
        reference, _ = hadamard_convolution(packed, weight, bias, backend="reference")
        double, _ = hadamard_convolution(*(t.double() for t in (packed, weight, bias)), backend="cpu")
    expected, _ = hadamard_convolution(*(t.bfloat16() for t in (packed, weight, bias)), backend="cpu")
    assert reference.dtype == rest.dtype == torch.bfloat16 and double.dtype == torch.float64
    assert torch.equal(local, expected) and torch.equal(direct, expected)
    assert {t.dtype for t in gradients((local, rest), (packed, weight, bias))} == {torch.float32}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(compiled_cpu, use_reentrant):
    inputs = small()
    direct = gradients(hadamard_convolution(*inputs, backend="cpu"), inputs)
    outputs = checkpoint(lambda *a: hadamard_convolution(*a, backend="cpu"), *inputs, use_reentrant=use_reentrant)
    sum(out.square().sum() for out in outputs).backward()
    assert all(torch.equal(a, t.grad) for a, t in zip(direct, inputs, strict=True))


def test_flop_formula(compiled_cpu):
    inputs = small()
    with FlopCounterMode(display=False) as counter:
        local, _ = hadamard_convolution(*inputs, backend="cpu")
        forward = counter.get_total_flops()
        local.sum().backward()
    assert forward == 2 * (2 * 5 * 6) * CHANNELS * WIDTH * 9
    assert counter.get_total_flops() == 3 * forward


def test_any_memory_layout(compiled_cpu):
    packed, weight, bias = (t.detach() for t in small())
    strided = [
        packed.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        weight.to(memory_format=torch.channels_last),
        bias.repeat_interleave(2)[::2],
    ]
    assert not any(t.is_contiguous() for t in strided)
    runs = []
    for inputs in (strided, [packed, weight, bias]):
        inputs = [t.detach().requires_grad_() for t in inputs]
        local, rest = hadamard_convolution(*inputs, backend="cpu")
        grads = torch.autograd.grad(
            (local, rest),
            inputs,
            (torch.ones(1).expand_as(local), torch.ones_like(rest.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)),
        )
        runs.append((local, *grads))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_values_share_the_memory_of_packed(compiled_cpu):
    packed, weight, bias = small()
    _, rest = hadamard_convolution(packed, weight, bias, backend="cpu")
    assert rest.data_ptr() == packed[..., 2 * CHANNELS :].data_ptr()


def test_a_gpu_is_not_used_unmeasured(monkeypatch):
    packed = torch.empty(1, 2, 2, 2, device="meta")
    monkeypatch.setattr(library, "OBSTACLES", {"cpu": None, "cuda": None, "meta": None})
    from elsa.kernels.functional import _choose

    monkeypatch.delenv("ELSA_BACKEND", raising=False)
    assert _choose("auto", packed) == "meta"
    assert _choose("auto", packed, unmeasured=("meta",)) == "reference"


# name of the argument → a wrong value made from the right ones; what is raised at the door, what its message contains;
# what the C++ operator says (a RuntimeError always).
REFUSALS = {
    "no dilation": ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0", "at least 1, got 0"),
    "scale": ({"scale": "1"}, TypeError, "scale must be a number, got '1'", None),
    "rank": ({"packed": lambda t: t[0]}, ValueError, r"\(B, H, W, D\), got shape", r"got shape \[5, 6, 21\]"),
    "too few channels": (
        {"packed": lambda t: t[..., :15]},
        ValueError,
        "needs 8 channels of queries and as many of keys, as weight has, got 15",
        "15",
    ),
    "no rows": ({"packed": lambda t: t[:, :0]}, ValueError, "at least one position", "at least one position"),
    "even kernel": ({"weight": lambda t: t[..., :2, :2]}, ValueError, "with an odd K", "odd"),
    "flat kernel": ({"weight": lambda t: t[..., :2]}, ValueError, "with an odd K", "weight"),
    "group width": ({"weight": lambda t: t[:, :3]}, ValueError, "the group width must divide C_q", "divide"),
    "no channels": ({"weight": lambda t: t[:0]}, ValueError, "the group width must divide", "weight"),
    "bias": (
        {"bias": lambda t: t[:7]},
        ValueError,
        r"bias must be \(C_q,\) = \(8,\), got shape \(7,\)",
        r"bias must have",
    ),
    "dtypes": (
        {"weight": lambda t: t.double()},
        TypeError,
        "weight has dtype torch.float64, packed",
        "weight must have",
    ),
    "integers": (
        {"packed": lambda t: t.int()},
        TypeError,
        "packed must be float16, bfloat16",
        "packed must be float16",
    ),
    "devices": ({"bias": lambda t: t.to("meta")}, TypeError, "bias is on meta, packed on cpu", None),
    "no tensor": ({"weight": 3}, TypeError, "weight must be a tensor, got int", None),
}


def wrong(changes):
    tensors = dict(zip(("packed", "weight", "bias"), (t.detach() for t in small()), strict=True))
    arguments = {**tensors, "scale": 1.0, "dilation": 1}
    return arguments | {name: c(arguments[name]) if callable(c) else c for name, c in changes.items()}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_refused_at_the_door(case, backend):
    changes, error, message, _ = REFUSALS[case]
    with pytest.raises(error, match=message):
        hadamard_convolution(**wrong(changes), backend=backend)


@pytest.mark.parametrize("case", [case for case in REFUSALS if REFUSALS[case][3]])
def test_refused_by_the_operator(compiled_cpu, case):
    changes, _, _, message = REFUSALS[case]
    packed, weight, bias, scale, dilation = wrong(changes).values()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.elsa.hadamard_forward(packed, weight, bias, scale, dilation, True)


@pytest.mark.parametrize("name", ["grad_local", "grad_rest", "before"])
def test_what_the_backward_pass_refuses(compiled_cpu, name):
    packed, weight, _ = (t.detach() for t in small())
    local, before = torch.ops.elsa.hadamard_forward(packed, weight, None, 1.0, 1, True)
    tensors = {
        "grad_local": local,
        "grad_rest": packed[..., 2 * CHANNELS :],
        "packed": packed,
        "weight": weight,
        "before": before,
    }
    for change, words in ((lambda t: t[..., :3], "must have shape"), (lambda t: t.double(), "must have dtype float32")):
        with pytest.raises(RuntimeError, match=f"{name} {words}"):
            torch.ops.elsa.hadamard_backward(*(tensors | {name: change(tensors[name])}).values(), 1.0, 1)
