"""The ELSA module and its block: the authors' values, initialisation, arguments, dropout, residuals."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from elsa.models import ELSA, ELSABlock


def relative_error(actual, expected):
    actual = actual.detach().numpy()
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", ["swin_stage1", "volo_style", "mul_only", "no_ghost_dil2"])
def test_output_gradients_and_state_equal_the_authors(golden, name):
    case, stored = golden.json("module")[name], golden.npz("module")
    module = ELSA(**case["kwargs"]).double()
    assert {key: list(entry.shape) for key, entry in module.state_dict().items()} == case["state"]
    golden.fill_(module, f"{name}/")
    x = golden.tensor(f"{name}/x", *case["input"], dtype=torch.float64).requires_grad_()
    y = module(x)
    y.backward(golden.tensor(f"{name}/grad", *y.shape, dtype=torch.float64))
    assert relative_error(y, stored[f"{name}/y"]) < 1e-5
    assert relative_error(x.grad, stored[f"{name}/dx"]) < 1e-5
    for key, parameter in module.named_parameters():
        assert relative_error(parameter.grad, stored[f"{name}/d/{key}"]) < 1e-5, key


def test_the_golden_file_has_no_other_case(golden):
    assert set(golden.json("module")) == {"swin_stage1", "volo_style", "mul_only", "no_ghost_dil2"}


@pytest.mark.parametrize(
    ("lam", "gamma", "shape"),
    [(0, 0, None), (0, 1, (1, 24, 3, 3)), (1, 0, (1, 24, 3, 3)), (2, 0.5, (2, 1, 24, 3, 3))],
)
def test_ghost_head_holds_what_lambda_and_gamma_ask_for(lam, gamma, shape):
    module = ELSA(24, 4, kernel_size=3, lam=lam, gamma=gamma)
    assert (module.ghost_head is None) == (shape is None)
    assert ("ghost_head" in module.state_dict()) == (shape is not None)
    if shape is not None:
        assert module.ghost_head.shape == shape
    assert module(torch.randn(1, 4, 5, 24)).shape == (1, 4, 5, 24)


def test_lambda_is_the_power_of_mul_and_gamma_the_factor_of_add():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 5, 24)
    curved, plain = ELSA(24, 4, kernel_size=3, lam=2, gamma=0.5), ELSA(24, 4, kernel_size=3, lam=1, gamma=1)
    state = copy.deepcopy(curved.state_dict())
    state["ghost_head"] = torch.stack([state["ghost_head"][0] ** 2, state["ghost_head"][1] * 0.5])
    plain.load_state_dict(state)
    torch.testing.assert_close(curved(x), plain(x))


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    module = ELSA(96, 3, kernel_size=7, lam=1, gamma=1, qkv_bias=True)
    mul, add = module.ghost_head
    assert mul.mean().item() == pytest.approx(0, abs=0.05)
    assert mul.std().item() == pytest.approx(1, rel=0.05)
    assert add.std().item() == pytest.approx(0.02, rel=0.05)
    assert module.post_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not module.post_proj.bias.any()
    for conv in (module.pre_proj, module.attn[0], module.attn[2]):  # PyTorch's default: uniform ± 1/√fan_in
        bound = 1 / math.sqrt(conv.weight[0].numel())
        assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_gamma_alone_starts_small_and_lambda_alone_starts_normal():
    torch.manual_seed(0)
    assert ELSA(48, 2, lam=0, gamma=1).ghost_head.std().item() == pytest.approx(0.02, rel=0.1)
    assert ELSA(48, 2, lam=1, gamma=0).ghost_head.std().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "dim_qk", "dim_v"),
    [
        (dict(dim=96, num_heads=3, group_width=4), 64, 96),
        (dict(dim=64, num_heads=4, group_width=8), 48, 64),  # 64 // 3 * 2 = 42, rounded up
        (dict(dim=32, num_heads=2, group_width=8, dim_qk=9, dim_v=40), 16, 40),
    ],
)
def test_channels_of_queries_keys_and_values(arguments, dim_qk, dim_v):
    module = ELSA(**arguments)
    dim = arguments["dim"]
    assert module.pre_proj.weight.shape == (2 * dim_qk + dim_v, dim, 1, 1)
    assert module.post_proj.weight.shape == (dim, dim_v)
    assert module(torch.randn(1, 3, 2, dim)).shape == (1, 3, 2, dim)


def test_default_scale_is_head_dim_to_the_minus_half():
    torch.manual_seed(0)
    default = ELSA(32, 2, kernel_size=3)
    explicit = ELSA(32, 2, kernel_size=3, qk_scale=16**-0.5)
    one = ELSA(32, 2, kernel_size=3, qk_scale=1)
    for other in (explicit, one):
        other.load_state_dict(default.state_dict())
    x = torch.randn(1, 5, 4, 32)
    assert torch.equal(default(x), explicit(x))
    assert not torch.allclose(default(x), one(x))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(num_heads=5), ["num_heads", "32", "5"]),
        (dict(num_heads=0), ["num_heads", "0"]),
        (dict(kernel_size=4), ["kernel_size", "4"]),
        (dict(kernel_size=-1), ["kernel_size", "-1"]),
        (dict(dilation=0), ["dilation", "0"]),
        (dict(lam=0.5), ["lam", "0.5"]),
        (dict(lam=-1), ["lam", "-1"]),
        (dict(groups=7), ["groups", "7"]),
        (dict(groups=0), ["groups", "0"]),
        (dict(group_width=0), ["group_width", "0"]),
        (dict(attn_drop=1.0), ["attn_drop", "below 1", "1.0"]),
    ],
    ids=str,
)
def test_refused_arguments_are_named(changes, said):
    with pytest.raises(ValueError) as caught:
        ELSA(**{**dict(dim=32, num_heads=4, kernel_size=3), **changes})
    for word in said:
        assert word in str(caught.value)


@pytest.mark.parametrize("build", [lambda **kw: ELSA(32, 4, **kw), lambda **kw: ELSABlock(32, 4, mlp_ratio=2, **kw)])
def test_misspelt_keyword_is_an_error(build):
    with pytest.raises(TypeError, match="kernel_sise"):
        build(kernel_sise=3)


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_logits_equal_the_dense_layer_with_a_block_diagonal_weight(groups):
    torch.manual_seed(0)
    grouped = ELSA(32, 4, kernel_size=3, groups=groups)
    dense = ELSA(32, 4, kernel_size=3)
    state = copy.deepcopy(grouped.state_dict())
    blocks = state["attn.2.weight"].flatten(1).chunk(groups)
    state["attn.2.weight"] = torch.block_diag(*blocks)[..., None, None]
    dense.load_state_dict(state)
    x = torch.randn(2, 5, 4, 32)
    torch.testing.assert_close(grouped(x), dense(x))


def test_attention_dropout_acts_in_training_only():
    torch.manual_seed(0)
    module, without = ELSA(32, 4, kernel_size=3, attn_drop=0.5), ELSA(32, 4, kernel_size=3)
    without.load_state_dict(module.state_dict())
    x = torch.randn(1, 5, 4, 32)
    assert torch.equal(module.eval()(x), without(x))
    assert not torch.equal(module.train()(x), module(x))


def test_projection_dropout_acts_in_training_only():
    torch.manual_seed(0)
    module = ELSA(32, 4, kernel_size=3, proj_drop=0.5)
    x = torch.randn(1, 5, 4, 32)
    share = (module(x) == 0).float().mean().item()
    assert 0.3 < share < 0.7
    assert not (module.eval()(x) == 0).any()


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 3)])
def test_any_map_and_every_parameter_gets_a_gradient(size):
    torch.manual_seed(0)
    module = ELSA(24, 3, kernel_size=5, dilation=2, qkv_bias=True, lam=1)
    x = torch.randn(2, *size, 24, requires_grad=True)
    y = module(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert x.grad.any()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_autocast_stays_close_and_trains():
    torch.manual_seed(0)
    module = ELSA(32, 4, kernel_size=3, lam=1, qk_scale=1)
    x = torch.randn(2, 6, 5, 32)
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.float().sum().backward()
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


class Constant(nn.Module):
    """Adds a known number, whatever comes in."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        return torch.full_like(x, self.number)


def test_block_is_pre_norm_with_two_residual_branches():
    torch.manual_seed(0)
    block = ELSABlock(24, 3, mlp_ratio=3, kernel_size=3)
    x = torch.randn(2, 4, 5, 24)
    middle = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))
    assert block.mlp.fc1.weight.shape == (72, 24)
    children = {name.split(".")[0] for name, _ in block.named_parameters()}
    assert children == {"norm1", "attn", "norm2", "mlp"}


def test_drop_path_drops_whole_samples_of_both_branches_in_training_only():
    torch.manual_seed(0)
    block = ELSABlock(24, 3, mlp_ratio=2, drop_path=0.5, kernel_size=3)
    block.attn, block.mlp = Constant(1.0), Constant(10.0)
    x = torch.zeros(256, 2, 3, 24)
    assert torch.equal(block.eval()(x), x + 11)
    out = block.train()(x)
    per_sample = out[:, 0, 0, 0]
    assert torch.equal(out, per_sample[:, None, None, None].expand_as(out))
    assert set(per_sample.tolist()) == {0.0, 2.0, 20.0, 22.0}  # kept branches are scaled by 1 / (1 − 0.5)


def test_functional_gradients():
    """torch.func's transforms, which the compiled operators do not know, differentiate their specification."""
    torch.manual_seed(0)
    module, x = ELSA(32, 2, group_width=4, lam=1).double(), torch.randn(3, 5, 6, 32, dtype=torch.float64)

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    parameters = dict(module.named_parameters())
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    module(x).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)
