"""Whose product computes a linear layer: the rule of the processor, ELSA_LINEAR, and calls that stay PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from elsa.kernels import linear, linear_info, mlp, onednn

needs_onednn = pytest.mark.skipif(
    onednn.obstacle() is not None, reason=f"needs oneDNN's product, but {onednn.obstacle()}"
)


@pytest.fixture
def processor(monkeypatch):
    """Sets the processor that this one is taken for."""

    def choose(vendor="AuthenticAMD", capability="AVX512"):
        monkeypatch.setattr(onednn, "_vendor", lambda: vendor)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        onednn.processor.cache_clear()

    monkeypatch.delenv("ELSA_LINEAR", raising=False)
    yield choose
    monkeypatch.undo()
    onednn.processor.cache_clear()
    onednn.obstacle.cache_clear()


@pytest.fixture
def products(monkeypatch):
    """How often oneDNN was asked."""
    onednn.obstacle()  # asks once itself
    asked, product = [], onednn.product

    def noted(*inputs, **options):
        asked.append(inputs)
        return product(*inputs, **options)

    monkeypatch.setattr(onednn, "product", noted)
    return asked


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return [torch.randn(300, 96), torch.randn(128, 96), torch.randn(128)]


@needs_onednn
@pytest.mark.parametrize(
    ("vendor", "capability", "ours", "told"),
    [
        ("AuthenticAMD", "AVX512", True, "onednn: AVX512 on AuthenticAMD, where MKL computes with AVX2"),
        ("HygonGenuine", "AVX512", True, "onednn: AVX512 on HygonGenuine, where MKL computes with AVX2"),
        (
            "GenuineIntel",
            "AVX512",
            False,
            "torch: AVX512 on GenuineIntel: MKL uses it; MLPs are computed some rows at a time",
        ),
        ("AuthenticAMD", "AVX2", False, "torch: AVX2 on AuthenticAMD: without AVX-512 both are equally fast"),
        ("aarch64", "DEFAULT", False, "torch: DEFAULT on aarch64: without AVX-512 both are equally fast"),
    ],
)
def test_the_rule_is_of_the_processor_alone(processor, products, inputs, vendor, capability, ours, told):
    processor(vendor, capability)
    assert linear_info() == told
    linear(*inputs)
    assert bool(products) == ours


@needs_onednn
def test_the_environment_chooses(processor, products, inputs, monkeypatch):
    processor("GenuineIntel")
    monkeypatch.setenv("ELSA_LINEAR", "onednn")
    assert linear_info() == "onednn: ELSA_LINEAR names it"
    linear(*inputs)
    assert len(products) == 1
    processor("AuthenticAMD")
    monkeypatch.setenv("ELSA_LINEAR", "torch")
    assert linear_info() == "torch: ELSA_LINEAR names it"
    linear(*inputs)
    assert len(products) == 1
    monkeypatch.setenv("ELSA_LINEAR", "mkl")
    for call in (linear_info, lambda: linear(*inputs)):
        with pytest.raises(ValueError, match="ELSA_LINEAR is 'mkl'; choose one of auto, torch, onednn"):
            call()


def wrong_schema(patch):
    patch.setattr(onednn, "SCHEMA", "(Tensor X, Tensor W, int[] sizes) -> Tensor Y")


def refuses(patch):
    def product(*inputs, **options):
        raise RuntimeError("expects a packed weight\nand more")

    patch.setattr(onednn, "product", product)


def computes_another(patch):
    patch.setattr(onednn, "product", lambda x, weight, bias, gelu: F.linear(x, weight, bias))


def without_onednn(patch):
    patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (wrong_schema, "has no mkldnn::_linear_pointwise as expected"),
        (refuses, "'s mkldnn::_linear_pointwise fails: expects a packed weight"),
        (computes_another, "'s mkldnn::_linear_pointwise computes something else"),
        (without_onednn, "is a build without oneDNN"),
    ],
)
def test_another_torch(processor, inputs, monkeypatch, spoil, reason):
    """Where its private operator is not what is expected, PyTorch's own layers run, unless oneDNN is asked for."""
    processor()
    spoil(monkeypatch)
    onednn.obstacle.cache_clear()
    reason = f"torch {torch.__version__}{'' if reason.startswith(chr(39)) else ' '}{reason}"
    assert linear_info() == f"torch: {reason}"
    assert torch.equal(linear(*inputs), F.linear(*inputs))
    monkeypatch.setenv("ELSA_LINEAR", "onednn")
    with pytest.raises(RuntimeError, match="ELSA_LINEAR is onednn, which cannot run") as refused:
        linear(*inputs)
    assert str(refused.value).endswith(reason)


@needs_onednn
def test_first_asked_within_a_trace(processor):
    """A graph may be the first thing that a process makes: the operator is tried outside of it."""
    processor()
    onednn.obstacle.cache_clear()
    with FakeTensorMode():
        assert onednn.obstacle() is None


# ---- calls that stay PyTorch's


@pytest.fixture
def asked_for(monkeypatch):
    monkeypatch.setenv("ELSA_LINEAR", "onednn")


class Same(torch.Tensor):
    """A subclass that changes nothing."""


def in_flop_counter(x, weight, bias):
    with FlopCounterMode(display=False):
        return linear(x, weight, bias)


def in_function_mode(x, weight, bias):
    class Listens(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Listens():
        return linear(x, weight, bias)


def without_mkldnn(x, weight, bias):
    with torch.backends.mkldnn.flags(enabled=False):
        return linear(x, weight, bias)


def exported(x, weight, bias):
    class Layer(nn.Module):
        def forward(self, x, weight, bias):
            return linear(x, weight, bias)

    program = torch.export.export(Layer(), (x, weight, bias))
    assert "mkldnn" not in str(program.graph)
    return program.module()(x, weight, bias)


def forward_mode(x, weight, bias):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        out, tangent = forward_ad.unpack_dual(linear(dual, weight, bias))
        torch.testing.assert_close(tangent, F.linear(torch.ones_like(x), weight))
        return out


@needs_onednn
@pytest.mark.parametrize(
    "call",
    [
        in_flop_counter,
        in_function_mode,
        without_mkldnn,
        exported,
        forward_mode,
        lambda *inputs: torch.vmap(linear, (0, None, None))(inputs[0].unflatten(0, (3, 100)), *inputs[1:]).flatten(
            0, 1
        ),
        lambda *inputs: torch.func.functional_call(
            nn.Linear(96, 128), dict(weight=inputs[1], bias=inputs[2]), inputs[0]
        ),
        lambda *inputs: torch.func.vjp(linear, *inputs)[0],
        lambda *inputs: make_fx(lambda *some: linear(*some))(*inputs)(*inputs),
        lambda *inputs: torch.jit.trace(linear, inputs, check_trace=False)(*inputs),
        lambda x, weight, bias: linear(x.as_subclass(Same), weight, bias).as_subclass(torch.Tensor),
        lambda x, weight, bias: linear(x, weight.double().float().to_mkldnn().to_dense().as_subclass(Same), bias),
        lambda x, weight, bias: linear(x.double(), weight.double(), bias.double()).float(),
        lambda x, weight, bias: torch.cat([linear(some, weight, bias) for some in x.split(20)]),
        lambda x, weight, bias: torch.stack([linear(one, weight, bias) for one in x]),
    ],
)
def test_what_stays_pytorchs(asked_for, products, inputs, call):
    torch.testing.assert_close(call(*inputs), F.linear(*inputs), rtol=1e-4, atol=1e-4)
    assert not products
    linear(*inputs)
    assert products


@needs_onednn
def test_other_devices(asked_for, products, inputs):
    out = linear(*(tensor.to("meta") for tensor in inputs), activation="gelu", residual=torch.empty((), device="meta"))
    assert out.is_meta
    assert out.shape == (300, 128)
    assert not products


@needs_onednn
def test_operations_are_counted_as_pytorchs(asked_for):
    def count(formula):
        x, weight, bias = torch.randn(900, 96, requires_grad=True), torch.randn(384, 96), torch.randn(384)
        weight.requires_grad_()
        with FlopCounterMode(display=False) as counter:
            formula(x, weight, bias).sum().backward()
        return counter.get_total_flops()

    assert count(linear) == count(F.linear) == 3 * 2 * 900 * 96 * 384
    theirs = count(lambda x, weight, bias: F.linear(F.gelu(F.linear(x, weight, bias)), weight.t()))
    assert count(lambda x, weight, bias: mlp(x, weight, bias, weight.t(), None)) == theirs


def test_only_gelu_is_an_activation(inputs):
    with pytest.raises(ValueError, match="activation must be None or 'gelu', got 'relu'"):
        linear(*inputs, activation="relu")


@needs_onednn
@pytest.mark.parametrize(
    "change",
    [
        lambda x, weight, bias: (x[:, :95], weight, bias),
        lambda x, weight, bias: (x, weight[None], bias),
        lambda x, weight, bias: (x, weight, bias[:-1]),
        lambda x, weight, bias: (x.bfloat16(), weight, bias),
        lambda x, weight, bias: (x, weight, bias.double()),
        lambda x, weight, bias: (x.long(), weight, bias),
        lambda x, weight, bias: (x.to("meta"), weight.half(), bias),
        lambda x, weight, bias: (x, weight.half(), bias.half()),
    ],
)
def test_wrong_inputs_are_refused_in_pytorchs_words(asked_for, products, inputs, change):
    wrong = change(*inputs)
    errors = []
    for formula in (linear, F.linear):
        with pytest.raises((RuntimeError, TypeError, NotImplementedError)) as refused:
            formula(*wrong)
        errors.append((refused.type, str(refused.value)))
    assert errors[0] == errors[1]
    with pytest.raises((RuntimeError, TypeError, NotImplementedError)) as refused:
        mlp(*wrong, torch.randn(96, 128), torch.randn(96))
    assert refused.type is errors[0][0]
    with pytest.raises(RuntimeError):
        mlp(*inputs, torch.randn(96, 127), torch.randn(96))
    assert not any(call[0].shape[-1] == 95 for call in products)
