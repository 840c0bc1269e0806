"""Linear layers by oneDNN's product against PyTorch's own: values, gradients, memory, and where it is not used."""

import functools
import multiprocessing
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from elsa.kernels import linear, mlp, mlps, onednn

pytestmark = pytest.mark.skipif(onednn.obstacle() is not None, reason=f"oneDNN's product: {onednn.obstacle()}")
CLOSE = {torch.float32: dict(rtol=1e-4, atol=1e-4), torch.bfloat16: dict(rtol=2e-2, atol=2e-2)}


@pytest.fixture(autouse=True)
def products(monkeypatch):
    """The products that oneDNN was asked for, on any processor."""
    monkeypatch.setenv("ELSA_LINEAR", "onednn")
    asked, product = [], onednn.product

    def noted(x, weight, *rest, **more):
        asked.append((tuple(x.shape), tuple(weight.shape)))
        return product(x, weight, *rest, **more)

    monkeypatch.setattr(onednn, "product", noted)
    return asked


@pytest.fixture(params=["onednn", "pytorch"])
def of_mlps(request, monkeypatch, products):
    """The products that an MLP took, by oneDNN or, on a processor where that is no faster, by PyTorch."""
    if request.param == "pytorch":
        monkeypatch.setenv("ELSA_LINEAR", "auto")
        monkeypatch.setattr(onednn, "processor", lambda: (False, "MKL uses AVX-512"))
        monkeypatch.setattr(onednn, "has_avx512", lambda: True)
        product = mlps._product

        def noted(x, weight, *rest, **more):
            products.append((tuple(x.shape), tuple(weight.shape)))
            return product(x, weight, *rest, **more)

        monkeypatch.setattr(mlps, "_product", noted)
    return products


def random(*shape, dtype=torch.float32, grad=False):
    return (torch.randn(shape) / shape[-1] ** 0.5).to(dtype).requires_grad_(grad)


def layer(rows=256, inputs=96, outputs=128, dtype=torch.float32, grad=False):
    return [random(rows, inputs, dtype=dtype, grad=grad) * 3, *parameters(inputs, outputs, dtype, grad)]


def parameters(inputs, outputs, dtype=torch.float32, grad=False):
    return [random(outputs, inputs, dtype=dtype, grad=grad), random(outputs, dtype=dtype, grad=grad)]


def plain(x, weight, bias=None, *, activation=None, residual=None):
    out = F.linear(x, weight, bias)
    out = F.gelu(out) if activation else out
    return out if residual is None else out + residual


def plain_mlp(x, weight1, bias1, weight2, bias2, residual=None):
    return plain(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2, residual=residual)


def with_gradients(formula, inputs, **options):
    """The result, and the gradients of a weighted sum of it."""
    fresh = [tensor if tensor is None else tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = formula(*fresh, **options)
    torch.manual_seed(1)
    found = torch.autograd.grad(out, [tensor for tensor in fresh if tensor is not None], torch.randn_like(out))
    return [out, *found]


def same(ours, theirs, dtype=torch.float32):
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, **CLOSE[dtype])


# ---- values and gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((2, 9, 17, 96), 147), ((1000, 33), 77), ((2, 300, 64), 1024), ((40, 768), 100), ((3000, 27), 27)],
    ids=str,
)
def test_layers_are_pytorchs(products, shape, outputs, activation, dtype):
    torch.manual_seed(0)
    inputs = [random(*shape, dtype=dtype) * 3, *parameters(shape[-1], outputs, dtype)]
    same(
        with_gradients(linear, inputs, activation=activation),
        with_gradients(plain, inputs, activation=activation),
        dtype,
    )
    inputs[2] = None
    residual = random(*shape[:-1], outputs, dtype=dtype)
    same(
        with_gradients(linear, inputs, activation=activation, residual=residual),
        with_gradients(plain, inputs, activation=activation, residual=residual),
        dtype,
    )
    assert products
    with torch.no_grad():
        same([linear(*inputs, residual=residual)], [plain(*inputs, residual=residual)], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "channels", "hidden", "outputs"), [(1719, 96, 384, 96), (1719, 160, 480, 160), (900, 48, 97, 31)]
)
def test_mlps_are_pytorchs(of_mlps, rows, channels, hidden, outputs, dtype):
    torch.manual_seed(0)
    inputs = [random(3, rows // 3, channels, dtype=dtype) * 3, *parameters(channels, hidden, dtype)]
    inputs += [*parameters(hidden, outputs, dtype), random(3, rows // 3, outputs, dtype=dtype)]

    def ours(*tensors):
        return mlp(*tensors[:5], residual=tensors[5])

    same(with_gradients(ours, inputs), with_gradients(plain_mlp, inputs), dtype)
    assert len({x for x, _ in of_mlps}) > 2, "not some rows at a time"
    for without in ([5], [2, 4], [2, 4, 5]):
        some = [None if index in without else tensor for index, tensor in enumerate(inputs)]
        same(with_gradients(ours, some), with_gradients(plain_mlp, some), dtype)
        with torch.no_grad():
            same([ours(*some)], [plain_mlp(*some)], dtype)


@pytest.mark.parametrize("learns", range(6))
@pytest.mark.parametrize("channels", [96, 160])
def test_gradients_of_one_input_alone(of_mlps, channels, learns):
    torch.manual_seed(0)
    inputs = [random(900, channels), *parameters(channels, 200), *parameters(200, channels), random(900, channels)]
    found = []
    for formula in (lambda *tensors: mlp(*tensors[:5], residual=tensors[5]), plain_mlp):
        tensors = [tensor.clone().requires_grad_(index == learns) for index, tensor in enumerate(inputs)]
        formula(*tensors).square().sum().backward()
        assert [index for index, tensor in enumerate(tensors) if tensor.grad is not None] == [learns]
        found.append(tensors[learns].grad)
    same(found[:1], found[1:])


@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_is_that_of_pytorchs_layer(products, stream):
    torch.manual_seed(0)
    inputs = [*layer(900, 96, 384), *parameters(384, 96), random(900, 96)]
    inputs[0], inputs[5] = inputs[0].to(stream), inputs[5].to(stream)
    with torch.autocast("cpu", torch.bfloat16):
        same(with_gradients(linear, inputs[:3]), with_gradients(plain, inputs[:3]), torch.bfloat16)
        ours = with_gradients(lambda *tensors: mlp(*tensors[:5], residual=tensors[5]), inputs)
        same(ours, with_gradients(plain_mlp, inputs), torch.bfloat16)
        assert products
        products.clear()
        double = [tensor.double() for tensor in inputs[:3]]
        assert linear(*double).dtype == torch.float64
    with torch.autocast("cpu", torch.float16):
        assert linear(*layer()).dtype == torch.float16
    assert not products


@pytest.mark.parametrize("change", ["transposed", "sliced", "rows apart", "channels last"])
def test_strides(change):
    torch.manual_seed(0)
    x, weight, bias = layer(600, 96, 128)
    if change == "transposed":
        x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
    elif change == "sliced":
        weight = random(128, 200)[:, 50:146]
    elif change == "rows apart":
        x = random(600, 300)[:, 100:196]
    else:
        x = random(2, 96, 15, 20).permute(0, 2, 3, 1)
    out = [linear(x, weight, bias), *torch.autograd.grad(linear(x.requires_grad_(), weight, bias).sum(), x)]
    same(out, [F.linear(x, weight, bias), *torch.autograd.grad(F.linear(x, weight, bias).sum(), x)])


def test_second_derivatives(products):
    torch.manual_seed(0)
    inputs = [*layer(64, 96, 384), *parameters(384, 96), random(64, 96)]

    def twice(formula, tensors):
        fresh = [tensor.clone().requires_grad_() for tensor in tensors]
        first = torch.autograd.grad(formula(*fresh).square().sum(), fresh, create_graph=True)
        return torch.autograd.grad(sum(gradient.sin().sum() for gradient in first), fresh)

    same(twice(linear, inputs[:3]), twice(plain, inputs[:3]))
    ours = twice(functools.partial(linear, activation="gelu"), inputs[:3])
    same(ours, twice(functools.partial(plain, activation="gelu"), inputs[:3]))
    ours = twice(lambda *tensors: mlp(*tensors[:5], residual=tensors[5]), inputs)
    same(ours, twice(plain_mlp, inputs))
    assert products


def test_an_input_made_of_the_weight_counts_once():
    torch.manual_seed(0)
    found = []
    for formula in (linear, plain):
        torch.manual_seed(0)
        weight = random(256, 256, grad=True)
        gradient = torch.autograd.grad(formula(weight * 2, weight).square().sum(), weight, create_graph=True)[0]
        found.append([gradient, torch.autograd.grad(gradient.square().sum(), weight)[0]])
    same(*found)


# ---- weights that change


def test_a_weight_is_never_stale(products):
    torch.manual_seed(0)
    net = nn.Linear(96, 256)
    x = random(256, 96)

    def fresh():
        for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
            with mode():
                same([linear(x, net.weight, net.bias)], [F.linear(x, net.weight, net.bias)])

    fresh()
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    linear(x, net.weight, net.bias).square().sum().backward()
    optimizer.step()
    fresh()
    net.load_state_dict({name: torch.randn_like(tensor) for name, tensor in net.state_dict().items()})
    fresh()
    with torch.no_grad():
        net.weight[3] += 5
    fresh()
    net.weight.data[4, 5] = 7.0
    fresh()
    net.weight.data = torch.randn(256, 96)
    fresh()
    net.weight.detach().numpy()[0] = 3.0
    fresh()
    net.weight = nn.Parameter(torch.randn(256, 96))
    fresh()
    storage = torch.randn(96 * 256)
    same([linear(x, storage.view(256, 96))], [F.linear(x, storage.view(256, 96))])
    same([linear(x, storage.view(96, 256).t())], [F.linear(x, storage.view(96, 256).t())])
    y = random(96, 256)
    same([linear(y, storage.view(96, 256))], [F.linear(y, storage.view(96, 256))])
    assert len(products) > 25


@pytest.mark.parametrize("formula", [linear, lambda x, w, b: mlp(x, w, b, w.t(), None)], ids=["linear", "mlp"])
def test_a_weight_changed_before_backward_is_an_error(formula):
    inputs = layer(grad=True)
    out = formula(*inputs).sum()
    with torch.no_grad():
        inputs[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_a_residual_is_not_written_to():
    x, weight, bias = layer(256, 96, 96)
    residual = random(256, 96)
    before = residual.clone()
    with torch.no_grad():
        linear(x, weight, bias, residual=residual)
        mlp(x, weight, bias, weight, bias, residual=residual)
    assert torch.equal(residual, before)
    same([linear(x, weight, bias, residual=torch.tensor(2.0))], [F.linear(x, weight, bias) + 2])


def test_a_result_may_be_written_to():
    """As that of PyTorch's layer, also where backward follows."""
    torch.manual_seed(0)
    inputs = [random(2, 9, 32, 96), *parameters(96, 128)]
    found = []
    for formula in (linear, plain, lambda x, weight, bias: mlp(x, weight, bias, weight.t(), None)):
        fresh = [tensor.clone().requires_grad_() for tensor in inputs]
        found.append([out := formula(*fresh).relu_(), *torch.autograd.grad(out.sum(), fresh)])
    same(*found[:2])


# ---- threads and processes


def results(inputs):
    first = with_gradients(linear, inputs[:3], activation="gelu")
    return first + with_gradients(lambda *tensors: mlp(*tensors[:5], residual=tensors[5]), inputs)


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return [*layer(1701, 160, 480), *parameters(480, 160), random(1701, 160)]


def test_bits_do_not_depend_on_the_number_of_threads(inputs):
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            found.append(results(inputs))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_parallel_threads(inputs):
    expected, found = results(inputs), [None] * 4

    def work(index):
        with torch.random.fork_rng():
            found[index] = [mlp(*inputs[:5], residual=inputs[5]) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    whole = mlp(*inputs[:5], residual=inputs[5])
    assert all(torch.equal(out, whole) for outs in found for out in outs)
    assert all(torch.equal(*pair) for pair in zip(expected, results(inputs), strict=True))


def _in_a_child(inputs, queue):
    torch.set_num_threads(1)
    with torch.no_grad():
        queue.put(mlp(*inputs[:5], residual=inputs[5]).numpy())


def test_a_forked_process_computes_after_its_parent_did(inputs):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            expected = mlp(*inputs[:5], residual=inputs[5])
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_in_a_child, args=([tensor.detach() for tensor in inputs], queue))
        child.start()
        found = torch.from_numpy(queue.get())
        child.join(60)
    finally:
        torch.set_num_threads(before)
    assert child.exitcode == 0
    assert torch.equal(found, expected)


# ---- memory


@pytest.mark.parametrize(("channels", "numbers"), [(96, 1), (160, 5)])
def test_what_an_mlp_keeps_for_backward(of_mlps, channels, numbers):
    rows, hidden = 2000, 4 * channels
    x = random(rows, channels)
    weights = [*parameters(channels, hidden, grad=True), *parameters(hidden, channels, grad=True)]
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or another would get its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = mlp(x, *weights, residual=x)
    assert sum(size for size, _ in kept.values()) == numbers * x.nbytes
    assert out.requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_blocks(of_mlps, inputs, reentrant):
    def recomputed(*tensors):
        return checkpoint(lambda *t: mlp(*t[:5], residual=t[5]), *tensors, use_reentrant=reentrant)

    found = []
    for formula in (recomputed, plain_mlp):
        fresh = [tensor.clone().requires_grad_() for tensor in inputs]
        formula(*fresh).square().sum().backward()
        found.append([tensor.grad for tensor in fresh])
    same(*found)
