"""Linear layers and MLPs within graphs of torch.compile: oneDNN's product as in eager mode, for any number of rows."""

import pytest
import torch
import torch.nn.functional as F

from elsa.kernels import graphs, linear, mlp, onednn

pytestmark = [
    pytest.mark.skipif(onednn.obstacle() is not None, reason=f"needs oneDNN's product, but {onednn.obstacle()}")
]
WIDE, NARROW = 160, 64  # more channels than those whose hidden map is recomputed, and fewer


def layers(channels=NARROW, rows=(2, 30), dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(*rows, channels), (4 * channels, channels), (4 * channels,), (channels, 4 * channels), (channels,)]
    return [(torch.randn(shape) / shape[-1] ** 0.5).to(dtype).requires_grad_() for shape in shapes]


def plain(x, w1, b1, w2, b2):
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


@pytest.fixture
def asked(monkeypatch):
    """How often oneDNN's product ran."""
    monkeypatch.setenv("ELSA_LINEAR", "onednn")
    torch._dynamo.reset()
    calls, product = [], onednn.product

    def noted(*inputs, **options):
        calls.append(inputs)
        return product(*inputs, **options)

    monkeypatch.setattr(onednn, "product", noted)
    yield calls
    torch._dynamo.reset()


def compare(found, expected, error_of, bound):
    assert found.dtype == expected.dtype
    assert error_of(found.detach().double(), expected.detach().double()) < bound


@pytest.mark.parametrize("channels", [NARROW, WIDE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(channels, dtype):
    x, w1, b1, w2, b2 = layers(channels, dtype=dtype)
    torch.library.opcheck(graphs.linear, (x, w1, b1, False))
    torch.library.opcheck(graphs.linear, (x.detach(), w1.detach(), None, True))
    for by_onednn in (True, False):
        torch.library.opcheck(graphs.mlp, (x, w1, b1, w2, b2, True, by_onednn))
        torch.library.opcheck(graphs.mlp, (x.detach(), w1.detach(), None, w2.detach(), None, False, by_onednn))


@pytest.mark.parametrize("channels", [NARROW, WIDE])
@pytest.mark.parametrize("biased", [True, False])
def test_an_mlp_and_its_gradients_for_any_rows(asked, error_of, channels, biased):
    step = torch.compile(lambda *a: mlp(*a, residual=a[0]), fullgraph=True, dynamic=True)
    for rows in ((2, 30), (5, 9), (3, 400)):
        x, w1, b1, w2, b2 = layers(channels, rows)
        inputs = [x, w1, b1 if biased else None, w2, b2 if biased else None]
        out, expected = step(*inputs), plain(*inputs) + x
        compare(out, expected, error_of, 2e-6)
        learned = [t for t in inputs if t is not None]
        pairs = zip(
            torch.autograd.grad(out.square().sum(), learned), torch.autograd.grad(expected.square().sum(), learned),
            strict=True,
        )  # fmt: skip
        for found, right in pairs:
            compare(found, right, error_of, 4e-6)
    assert asked


@pytest.mark.skipif(not onednn.has_avx512(), reason="needs a processor with AVX-512: without it MLPs are PyTorch's")
@pytest.mark.parametrize("channels", [NARROW, WIDE])
def test_where_layers_are_pytorchs_an_mlp_goes_some_rows_at_a_time_too(asked, monkeypatch, error_of, channels):
    monkeypatch.setenv("ELSA_LINEAR", "auto")
    monkeypatch.setattr(onednn, "processor", lambda: (False, "of this test"))
    seen = []

    def backend(graph, _):
        seen.append(str(graph.graph))
        return graph.forward

    inputs = layers(channels, (3, 400))
    out = torch.compile(mlp, fullgraph=True, backend=backend)(*inputs)
    compare(out, plain(*inputs), error_of, 2e-6)
    pairs = zip(*(torch.autograd.grad(t.square().sum(), inputs) for t in (out, plain(*inputs))), strict=True)
    for found, right in pairs:
        compare(found, right, error_of, 4e-6)
    assert "mlp_by_rows" in seen[0] and "onednn" not in seen[0]
    with torch.no_grad():  # the compiler fuses GELU with the product
        torch.compile(mlp, fullgraph=True, backend=backend)(*inputs)
    assert "mlp_by_rows" not in seen[1]
    assert not asked


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_a_layer_learns_and_infers(asked, error_of, activation):
    x, weight, bias, _, _ = layers()
    step = torch.compile(lambda *a: linear(*a, activation=activation, residual=a[2]), fullgraph=True)
    expected = F.linear(x, weight, bias)
    expected = (F.gelu(expected) if activation else expected) + bias
    out = step(x, weight, bias)
    compare(out, expected, error_of, 2e-6)
    found, right = (torch.autograd.grad(t.square().sum(), (x, weight, bias)) for t in (out, expected))
    for a, b in zip(found, right, strict=True):
        compare(a, b, error_of, 4e-6)
    count = len(asked)
    with torch.no_grad():
        compare(step(x, weight, bias), expected, error_of, 2e-6)
    assert len(asked) == count + 1


def test_an_image_without_a_gradient_costs_none(asked):
    x, weight, bias, _, _ = layers()
    step = torch.compile(linear, fullgraph=True, backend="aot_eager")
    step(x.detach(), weight, bias).sum().backward()
    assert len(asked) == 2  # the layer, and the gradient of its weight
    assert weight.grad is not None and bias.grad is not None


def test_autocast(asked, error_of):
    inputs = layers(WIDE)
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.compile(mlp, fullgraph=True, backend="aot_eager")(*inputs)
        expected = plain(*inputs)
    assert out.dtype == torch.bfloat16
    compare(out, expected, error_of, 2e-2)
    found, right = (torch.autograd.grad(t.float().square().sum(), inputs) for t in (out, expected))
    for a, b in zip(found, right, strict=True):
        compare(a, b, error_of, 3e-2)


@pytest.mark.parametrize("case", ["torch", "small", "double"])
def test_what_stays_pytorchs(asked, monkeypatch, case):
    x, weight, bias, _, _ = layers()
    if case == "torch":
        monkeypatch.setenv("ELSA_LINEAR", "torch")
    if case == "small":
        weight, bias = weight[:100], bias[:100]
    if case == "double":
        x, weight, bias = x.double(), weight.double(), bias.double()
    out = torch.compile(linear, fullgraph=True, backend="aot_eager")(x, weight, bias)
    assert torch.equal(out, F.linear(x, weight, bias))
    assert not asked


def test_an_exported_layer_is_pytorchs(asked):
    class Layer(torch.nn.Module):
        def forward(self, x, weight, bias):
            return linear(x, weight, bias)

    inputs = tuple(t.detach() for t in layers()[:3])
    program = torch.export.export(Layer(), inputs, strict=True)
    assert "elsa" not in str(program.graph)
    assert torch.equal(program.module()(*inputs), F.linear(*inputs))
