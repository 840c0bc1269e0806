"""torch.compile in place: names, copies, hooks, sharding and distribution, and its errors in a line."""

import copy
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from elsa.core import ConfigError, TrainingError
from elsa.engine.compiling import GRAPHS, check_compiler, compile_errors, compile_parts, parts_to_compile
from elsa.engine.parallel import blocks, shard


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x):
        return x + self.inner(self.norm(x)).relu()


class Network(nn.Module):
    grad_checkpointing = False

    def __init__(self, width=8, depth=3):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def alone():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(network, x):
    network(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_in_place_with_names_and_copies(counter):
    network, x = Network(), torch.randn(4, 8)
    names, expected = list(network.state_dict()), network(x)
    compile_parts([network], backend=counter)
    average = copy.deepcopy(network)
    assert list(network.state_dict()) == list(average.state_dict()) == names
    assert torch.equal(network(x), expected) and counter.since() == 1
    with torch.no_grad():
        average.head.weight.zero_()
        average.head.bias.fill_(3)
    assert average(x).eq(3).all() and torch.equal(network(x), expected)
    network.load_state_dict(average.state_dict())  # weights are no constants of a graph
    assert network(x).eq(3).all()


def test_hooks_stay_outside_of_a_graph(counter):
    network, seen = Network(), []
    compile_parts([network], backend=counter)
    network.register_forward_hook(torch.compiler.disable(lambda module, inputs, output: seen.append(output.shape)))
    network(torch.randn(4, 8))
    assert seen == [(4, 2)] and counter.graphs == 1


def test_which_parts():
    network = Network()
    assert parts_to_compile(network, divided=False, processes=2) == [network]
    assert parts_to_compile(network, divided=True, processes=2) == blocks(network) == list(network.blocks)
    network.grad_checkpointing = True
    assert parts_to_compile(network, divided=False, processes=1) == [network]
    assert parts_to_compile(network, divided=False, processes=2) == list(network.blocks)


def test_blocks_are_compiled_before_they_are_divided(counter, alone):
    network, x = Network(), torch.randn(4, 8)
    expected = gradients(copy.deepcopy(network), x)
    compile_parts(parts_to_compile(network, divided=True, processes=2), backend=counter)
    shard(network, init_device_mesh("cpu", (1,)))
    found = gradients(network, x)
    assert counter.since() == 3
    assert all(torch.allclose(found[name].full_tensor(), gradient) for name, gradient in expected.items())
    network(x).sum().backward()
    assert counter.since() == 0


def test_gradients_of_one_graph_are_exchanged_in_parts(counter, alone):
    network, x = Network(width=512, depth=4), torch.randn(2, 512)  # 1 MB of weights each, as much as a bucket
    expected = gradients(copy.deepcopy(network), x)
    compile_parts([network], backend=counter)
    wrapped = DistributedDataParallel(network, bucket_cap_mb=1)
    wrapped(x).square().sum().backward()
    assert counter.graphs >= 4
    assert all(torch.allclose(p.grad, expected[name]) for name, p in network.named_parameters())


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class EveryDimension(nn.Module):
    def forward(self, x):
        return 2 * x


def broken(graph, inputs):
    raise RuntimeError("no such instruction\nand much more")


@pytest.mark.parametrize(
    ("module", "backend", "inputs", "message"),
    [
        (Branching(), "eager", [torch.ones(2)], "Data-dependent branching: Detected data-dependent"),
        (EveryDimension(), broken, [torch.ones(2)], "no such instruction"),
        (EveryDimension(), "eager", [torch.ones([2] * n) for n in range(GRAPHS + 1)], f"was compiled {GRAPHS} times"),
    ],
    ids=("branch", "backend", "too often"),
)
def test_what_cannot_be_compiled_is_one_line(module, backend, inputs, message):
    torch._dynamo.reset()
    compile_parts([module], backend=backend)
    with pytest.raises(TrainingError, match=message) as raised, compile_errors():
        for x in inputs:
            module(x)
    assert "TRAIN.COMPILE=false" in str(raised.value) and "\n" not in str(raised.value)


def test_other_errors_are_left_alone():
    with pytest.raises(ZeroDivisionError), compile_errors():
        _ = 1 / 0


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, and /nonexistent/c\+\+ .*TRAIN.COMPILE=false"):
        check_compiler(torch.device("cpu"))
    monkeypatch.setenv("CXX", sys.executable)
    check_compiler(torch.device("cpu"))
