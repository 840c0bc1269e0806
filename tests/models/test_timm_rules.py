"""More of what timm asks of the models that it lists: graphs of torch.fx, devices and types, pruning, resetting.

Left out by name is TorchScript (``torch.jit.script``): docs/extend.md says so.
"""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models import create_feature_extractor, get_graph_node_names

SWIN = "elsa_swin_nano"
VOLO = "elsa_volo_nano"
NANOS = [SWIN, VOLO]
BASELINES = [(SWIN, dict(attention=["window"] * 4, depths=(1, 1, 1, 2))), (VOLO, dict(attention="outlook"))]
NETWORKS = [*((name, {}) for name in NANOS), (SWIN, dict(ape=True, lam=1)), *BASELINES]


def image(batch=2, height=64, width=64):
    return torch.randn(batch, 3, height, width)


def alike(name, **arguments):
    """Networks made of the same random numbers."""
    torch.manual_seed(1)
    return timm.create_model(name, **arguments)


# ---- graphs of torch.fx


@pytest.mark.parametrize(("name", "arguments"), NETWORKS, ids=str)
def test_a_graph_computes_what_the_network_does(name, arguments):
    """Made once, it takes other batches and sizes of images, and has every gradient."""
    model = timm.create_model(name, num_classes=5, **arguments).eval()
    nodes, _ = get_graph_node_names(model)
    graph = create_feature_extractor(model, nodes[-1:])
    for x in (image(), image(1, 96, 72)):
        with torch.no_grad():
            (out,) = graph(x).values()
            torch.testing.assert_close(out, model(x), atol=1e-5, rtol=1e-4)
    (out,) = create_feature_extractor(model.train(), get_graph_node_names(model)[0][-1:])(image()).values()
    out.square().mean().backward()
    assert out.shape == (2, 5)
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(
    ("name", "node", "shape"),
    [
        (SWIN, "layers.1.blocks.0.mlp.fc1", (2, 8, 8, 256)),
        (SWIN, "layers.2.blocks.1.attn", (2, 4, 4, 128)),
        (SWIN, "layers.3.blocks.0", (2, 2, 2, 256)),
        (VOLO, "network.0.1.attn", (2, 8, 8, 64)),
        (VOLO, "network.2.0.attn.qkv", (2, 4, 4, 384)),
    ],
)
def test_what_a_module_within_gives_can_be_taken_out(name, node, shape):
    model, seen = timm.create_model(name).eval(), []
    graph = create_feature_extractor(model, [node])
    model.get_submodule(node).register_forward_hook(lambda _, inputs, out: seen.append(out))
    x = image()
    with torch.no_grad():
        taken = graph(x)[node]
        model(x)
    assert taken.shape == shape
    torch.testing.assert_close(taken, seen[-1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NANOS)
@pytest.mark.parametrize("way", ["fx", "hook"])
def test_every_way_of_timm_to_features_gives_the_same_maps(name, way):
    usual, other = (alike(name, features_only=True, feature_cls=kind).eval() for kind in ("getter", way))
    assert other.feature_info.channels() == usual.feature_info.channels()
    x = image()
    with torch.no_grad():
        for one, two in zip(usual(x), other(x), strict=True):
            torch.testing.assert_close(two.permute(0, 3, 1, 2), one, atol=1e-5, rtol=1e-4)


# ---- devices and types


@pytest.mark.parametrize("name", NANOS)
def test_device_and_type_are_arguments(name):
    model = timm.create_model(name, device="meta", dtype=torch.float64)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float64}
    maps = timm.create_model(name, features_only=True, dtype=torch.float64)(image().double())
    assert {level.dtype for level in maps} == {torch.float64}


@pytest.mark.parametrize("name", NANOS)
def test_a_network_that_has_computed_takes_another_type(name):
    model = timm.create_model(name, num_classes=3).eval()
    x = image()
    with torch.no_grad():
        before = model(x)
        assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(model.float()(x), before, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", NANOS)
def test_a_fresh_head_is_where_and_as_the_rest_is(name):
    model = timm.create_model(name).to("meta", torch.float64).eval()
    model.reset_classifier(0)
    model.reset_classifier(2)
    assert {(p.device.type, p.dtype) for p in model.get_classifier().parameters()} == {("meta", torch.float64)}
    assert not [key for key, module in model.named_modules() if module.training]


@pytest.mark.parametrize("name", NANOS)
def test_what_is_frozen_stays_so(name):
    model = timm.create_model(name, **({"ape": True, "img_size": 64} if name == SWIN else {}))
    model.requires_grad_(False)
    model.reset_classifier(0)
    model.set_input_size(img_size=(128, 96))
    if name == SWIN:
        model.set_input_size(window_size=3)
    assert not [key for key, parameter in model.named_parameters() if parameter.requires_grad]


# ---- parts of a network


@pytest.mark.parametrize("name", NANOS)
def test_pruning_to_the_last_stage_with_its_head_changes_nothing(name):
    model = timm.create_model(name).eval()
    x = image()
    with torch.no_grad():
        before = model(x)
        model.prune_intermediate_layers([3], prune_head=False)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("name", NANOS)
def test_a_pruned_network_has_nothing_that_does_not_learn(name, stage):
    model = timm.create_model(name)
    kept = model.prune_intermediate_layers([stage], prune_norm=True)
    x = image()
    maps = model.forward_intermediates(x, indices=kept, intermediates_only=True)
    (sum(level.sum() for level in maps) + model.forward_features(x).sum()).backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", NANOS)
def test_weights_without_a_head_fit_a_network_without_one(name):
    source = timm.create_model(name, num_classes=0).eval()
    other = timm.create_model(name, num_classes=7).eval()
    missing, unexpected = other.load_state_dict(source.state_dict(), strict=False)
    assert {key.split(".")[0] for key in missing} <= {"head", "aux_head"} and not unexpected
    other.reset_classifier(0)
    x = image()
    with torch.no_grad():
        assert torch.equal(other(x), source(x))


@pytest.mark.parametrize("name", NANOS)
def test_what_is_exempt_from_decay_exists(name):
    model = timm.create_model(name, **({"ape": True} if name == SWIN else {}))
    assert model.no_weight_decay() <= {key for key, _ in model.named_parameters()}
    assert copy.deepcopy(model).no_weight_decay() == model.no_weight_decay()
