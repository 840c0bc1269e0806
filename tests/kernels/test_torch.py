"""The operator as a citizen of torch: gradients, tracing, export, autocast, checkpointing, FLOPs, layouts."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from elsa.kernels import elsa_attention

pytestmark = pytest.mark.usefixtures("compiled_cpu")
SIZES = {"num_heads": 2, "kernel_size": 3, "dilation": 1}


def small(dtype=torch.float32, batch=2, height=5, width=6, channels=8, **changes):
    sizes = {**SIZES, **changes}
    taps = sizes["kernel_size"] ** 2
    position = (batch, height, width)
    shapes = ((*position, channels), (*position, sizes["num_heads"] * taps), (channels, taps), (channels, taps))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def ghost_modes(inputs):
    value, logits, mul, add = inputs
    return [(value, logits, None, None), (value, logits, mul, None), (value, logits, None, add), tuple(inputs)]


@pytest.mark.parametrize("mode", range(4))
def test_gradcheck(mode):
    arguments = ghost_modes(small(torch.float64, batch=1, height=3, width=4, channels=4))[mode]
    assert torch.autograd.gradcheck(lambda *a: elsa_attention(*a, **SIZES, backend="cpu"), arguments)


@pytest.mark.parametrize("mode", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck_forward(mode, dtype):
    value, logits, mul, add = ghost_modes(small(dtype))[mode]
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    ghosts = [None if g is None else g.detach().to(accumulate).requires_grad_() for g in (mul, add)]
    torch.library.opcheck(torch.ops.elsa.attention_forward.default, (value, logits, *ghosts, *SIZES.values()))


@pytest.mark.parametrize("mode", range(4))
def test_opcheck_backward(mode):
    arguments = [None if t is None else t.detach() for t in ghost_modes(small())[mode]]
    gradient = torch.randn_like(arguments[0])
    torch.library.opcheck(torch.ops.elsa.attention_backward.default, (gradient, *arguments, *SIZES.values()))


def test_only_the_gradients_asked_for():
    value, logits, mul, add = small()
    logits.requires_grad_(False)
    elsa_attention(value, logits, mul.detach(), add, **SIZES, backend="cpu").sum().backward()
    assert value.grad is not None and add.grad is not None and logits.grad is None


def test_half_precision_ghosts_receive_their_own_type():
    value, logits, mul, add = small(torch.bfloat16)
    elsa_attention(value, logits, mul, add, **SIZES, backend="cpu").sum().backward()
    assert {t.grad.dtype for t in (value, logits, mul, add)} == {torch.bfloat16}


def test_double_backward_is_refused():
    value, *rest = small()
    out = elsa_attention(value, *rest, **SIZES, backend="cpu")
    (grad,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative; pass backend='reference'"):
        grad.sum().backward()


def test_compile_fullgraph_with_dynamic_sizes(error_of):
    torch._dynamo.reset()
    step = torch.compile(lambda *a: elsa_attention(*a, **SIZES), fullgraph=True, dynamic=True)
    for shape in ((2, 5, 6), (3, 7, 4), (1, 9, 9)):
        inputs = small(batch=shape[0], height=shape[1], width=shape[2])
        out = step(*inputs)
        out.square().sum().backward()
        compiled = [t.grad.clone() for t in inputs]
        for t in inputs:
            t.grad = None
        expected = elsa_attention(*inputs, **SIZES, backend="reference")
        expected.square().sum().backward()
        assert error_of(out.detach(), expected.detach()) < 1e-5
        assert all(error_of(found, t.grad) < 1e-5 for found, t in zip(compiled, inputs, strict=True))


class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.add = torch.nn.Parameter(torch.randn(8, 9))

    def forward(self, value, logits):
        return elsa_attention(value, logits, None, self.add, **SIZES)


def test_export_with_dynamic_batch_and_sizes(error_of):
    module = Wrapped().eval()
    value, logits = (t.detach() for t in small()[:2])
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    dynamic = {"value": dims, "logits": dims}
    exported = torch.export.export(module, (value, logits), dynamic_shapes=dynamic, strict=False)
    assert "elsa.attention_forward" in str(exported.graph)
    other = [t.detach() for t in small(batch=3, height=4, width=11)[:2]]
    assert error_of(exported.module()(*other), module(*other)) == 0


def test_autocast():
    value, logits, mul, add = small()
    with torch.autocast("cpu", torch.bfloat16):
        out = elsa_attention(value, logits, mul, add, **SIZES, backend="cpu")
        mixed = elsa_attention(value, logits.bfloat16(), mul, add, **SIZES, backend="cpu")
        direct = torch.ops.elsa.attention_forward(value, logits, mul, add, *SIZES.values())
        reference = elsa_attention(value, logits, mul, add, **SIZES, backend="reference")
        double = elsa_attention(*(t.double() for t in (value, logits, mul, add)), **SIZES, backend="cpu")
    expected = elsa_attention(value.bfloat16(), logits.bfloat16(), mul, add, **SIZES, backend="cpu")
    assert reference.dtype == torch.bfloat16 and double.dtype == torch.float64
    assert all(torch.equal(found, expected) for found in (out, mixed, direct))
    out.sum().backward()
    assert {t.grad.dtype for t in (value, logits, mul, add)} == {torch.float32}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant):
    inputs = small()
    elsa_attention(*inputs, **SIZES, backend="cpu").square().sum().backward()
    direct = [t.grad.clone() for t in inputs]
    for t in inputs:
        t.grad = None
    out = checkpoint(lambda *a: elsa_attention(*a, **SIZES, backend="cpu"), *inputs, use_reentrant=use_reentrant)
    out.square().sum().backward()
    assert all(torch.equal(found, t.grad) for found, t in zip(direct, inputs, strict=True))


def test_any_memory_layout():
    value, logits, mul, add = (t.detach() for t in small())
    strided = [
        value.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        logits.repeat_interleave(2, -1)[..., ::2],
        mul.t().contiguous().t(),
        torch.cat([add, add])[: len(add)],
    ]
    assert not strided[0].is_contiguous() and not strided[1].is_contiguous() and not strided[2].is_contiguous()
    for t in (*strided, value, logits, mul, add):
        t.requires_grad_()
    out = elsa_attention(*strided, **SIZES, backend="cpu")
    dense = elsa_attention(value, logits, mul, add, **SIZES, backend="cpu")
    assert torch.equal(out, dense)
    gradient = torch.randn(2, 8, 5, 6).permute(0, 2, 3, 1)  # not contiguous either
    out.backward(gradient)
    dense.backward(gradient.contiguous())
    assert all(torch.equal(s.grad, t.grad) for s, t in zip(strided, (value, logits, mul, add), strict=True))


def test_flop_formula():
    inputs = small()
    with FlopCounterMode(display=False) as counter:
        out = elsa_attention(*inputs, **SIZES, backend="cpu")
        forward = counter.get_total_flops()
        out.sum().backward()
    multiply_adds = 2 * 5 * 6 * 8 * 9
    assert forward == 2 * multiply_adds
    assert counter.get_total_flops() - forward == 2 * multiply_adds * 4  # value, weights, two ghosts


def test_deterministic_algorithms():
    inputs = small()
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            out = elsa_attention(*inputs, **SIZES, backend="cpu")
            runs.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_empty_batch():
    inputs = small(batch=0)
    out = elsa_attention(*inputs, **SIZES, backend="cpu")
    assert out.shape == (0, 5, 6, 8)
    out.sum().backward()
    assert inputs[0].grad.shape == (0, 5, 6, 8) and inputs[1].grad.shape == (0, 5, 6, 18)
    assert inputs[2].grad.eq(0).all() and inputs[3].grad.eq(0).all()
