"""Linear layers and MLPs of the networks: the same as timm's, and called as modules where somebody listens."""

import copy
import pickle

import pytest
import timm
import timm.layers
import torch
from timm.layers import DropPath
from timm.models import volo
from torch import nn
from torch.nn.utils import parametrizations, prune

from elsa.kernels import mlps
from elsa.models import mlp as module
from elsa.models import transformer
from elsa.models.mlp import Mlp, add_mlp, apply_linear, is_plain


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(2, 10, 20, 32)


@pytest.fixture
def ours():
    torch.manual_seed(1)
    return Mlp(32, 128)


@pytest.fixture
def fused(monkeypatch):
    """How often an MLP was computed as one."""
    calls = []
    monkeypatch.setattr(module, "mlp", lambda *inputs, **rest: calls.append(inputs) or mlps.plain_mlp(*inputs, **rest))
    return calls


def theirs(mlp):
    twin = timm.layers.Mlp(32, 128, drop=mlp.drop1.p)
    twin.load_state_dict(mlp.state_dict())
    return twin.train(mlp.training)


def test_the_mlp_is_timms(ours, x, fused):
    torch.testing.assert_close(ours(x), theirs(ours)(x))
    torch.testing.assert_close(ours(x, residual=x), x + theirs(ours)(x))
    assert len(fused) == 2
    assert isinstance(ours, timm.layers.Mlp)
    assert type(ours.fc1) is type(ours.fc2) is nn.Linear
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again(x), ours(x))


def test_dropout_is_timms(x, fused):
    torch.manual_seed(1)
    ours = Mlp(32, 128, drop=0.5)
    twin = theirs(ours)
    results = []
    for mlp in (ours, twin):
        torch.manual_seed(3)
        results.append(mlp(x))
    torch.testing.assert_close(*results)
    assert not fused
    torch.testing.assert_close(ours.eval()(x), twin.eval()(x))
    assert len(fused) == 1


@pytest.mark.parametrize("part", ["fc1", "act", "drop1", "norm", "fc2", "drop2"])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_of_every_part_run(ours, x, fused, part, register):
    ran = []
    handle = getattr(ours.get_submodule(part), register)(lambda *inputs: ran.append(part))
    ours(x.requires_grad_()).sum().backward()
    assert ran == [part]
    assert not fused
    handle.remove()
    ours(x)
    assert len(fused) == 1


def test_hooks_of_all_modules_run(ours, x, fused):
    ran = []
    handle = nn.modules.module.register_module_forward_hook(lambda part, *rest: ran.append(part))
    try:
        ours(x)
        apply_linear(ours.fc1, x)
    finally:
        handle.remove()
    assert [type(part) for part in ran].count(nn.Linear) == 3
    assert not fused


def pruned(mlp):
    prune.l1_unstructured(mlp.fc1, "weight", 0.5)
    mlp.fc1.weight_orig.data.mul_(2)  # what the hook makes of it at the next call


def parametrized(mlp):
    parametrizations.weight_norm(mlp.fc2)


def replaced(mlp):
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    mlp.fc2 = Doubled(128, 32)


def another_forward(mlp):
    layer = mlp.fc1
    layer.forward = lambda x: nn.Linear.forward(layer, x) * 2


def another_activation(mlp):
    mlp.act = nn.ReLU()


def approximate(mlp):
    mlp.act = nn.GELU("tanh")


def normalised(mlp):
    mlp.norm = nn.LayerNorm(128)


@pytest.mark.parametrize(
    "change", [pruned, parametrized, replaced, another_forward, another_activation, approximate, normalised]
)
def test_changed_parts_are_called(ours, x, fused, change):
    change(ours)
    out = ours(x)
    assert not fused
    by_hand = ours.fc2(ours.norm(ours.act(ours.fc1(x))))
    torch.testing.assert_close(out, by_hand)
    other = Mlp(32, 128)
    other.load_state_dict(ours.state_dict(), strict=False)
    assert change is approximate or not torch.allclose(other(x), out)


def test_a_compiled_layer_is_called(ours, x):
    ours.fc1.compile(backend="eager")
    assert not is_plain(ours.fc1, nn.Linear)
    assert is_plain(ours.fc2, nn.Linear)
    torch.testing.assert_close(ours(x), theirs(ours)(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("drop_path", [nn.Identity(), DropPath(0.0), DropPath(0.5)], ids=str)
def test_the_second_half_of_a_block(ours, x, fused, drop_path, training):
    norm = nn.LayerNorm(32)
    drop_path = copy.deepcopy(drop_path).train(training)

    def seeded(formula, *inputs):
        torch.manual_seed(3)
        return formula(*inputs)

    twin = theirs(ours)
    expected = seeded(lambda: x + drop_path(twin(norm(x))))
    torch.testing.assert_close(seeded(add_mlp, x, norm, ours, drop_path), expected)
    assert len(fused) == 1
    torch.testing.assert_close(seeded(add_mlp, x, norm, twin, drop_path), expected)
    ran = []
    drop_path.register_forward_hook(lambda *inputs: ran.append(1))
    torch.testing.assert_close(seeded(add_mlp, x, norm, ours, drop_path), expected)
    assert ran == [1]


def test_volos_modules_are_ours_with_plain_linear_layers():
    network = timm.create_model("elsa_volo_d1", img_size=64, layers=(1, 1, 1, 1), num_classes=5)
    kinds = {type(part) for part in network.modules()}
    assert not kinds & set(transformer.OURS)
    assert set(transformer.OURS.values()) <= kinds
    assert {kind for kind in kinds if issubclass(kind, nn.Linear)} == {nn.Linear}


@pytest.mark.parametrize("kind", [volo.Attention, volo.ClassAttention, volo.Transformer])
def test_volos_modules_compute_as_timms(kind):
    torch.manual_seed(0)
    original = kind(24, num_heads=3, qkv_bias=True).eval()
    changed = copy.deepcopy(original)
    transformer.use_our_layers(changed)
    assert type(changed) is transformer.OURS[kind]
    x = torch.randn(2, 5, 24) if kind is volo.ClassAttention else torch.randn(2, 5, 4, 24)
    torch.testing.assert_close(changed(x), original(x))
