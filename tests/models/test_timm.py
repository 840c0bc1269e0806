"""What timm's own tests demand of a model, for every variant of the table."""

from __future__ import annotations

import copy
import re

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters, model_entrypoint
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

import elsa.models
from elsa.models import VARIANTS, ELSASwin

NANO = "elsa_swin_nano"
VOLO = "elsa_volo_nano"
NANOS = [NANO, VOLO]
CHEAP = [*NANOS, "elsa_swin_tiny"]
SHIFTED = dict(depths=(1, 1, 1, 2), window_size=3)  # with 128 pixels a last map of 4 × 4: windows, shifts and padding


def build(name=NANO, **changes):
    return timm.create_model(name, **changes)


def image(batch=2, channels=3, height=64, width=64):
    return torch.randn(batch, channels, height, width)


# ---- registration


@pytest.mark.parametrize("name", VARIANTS)
def test_registered_with_a_default_cfg(name):
    assert timm.is_model(name)
    assert name in timm.list_models("elsa*")
    assert model_entrypoint(name).__name__ == name
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.architecture == name
    assert cfg.num_classes == 1000
    assert cfg.input_size == (3, 224, 224)
    assert cfg.fixed_input_size is False
    assert cfg.interpolation == "bicubic"
    assert cfg.crop_pct == (0.9 if "swin" in name else 0.96)
    assert cfg.pool_size == ((7, 7) if "swin" in name else None)


def test_every_registered_elsa_model_is_in_the_table():
    assert set(timm.list_models(module="registry")) & set(timm.list_models("elsa*")) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_first_conv_and_classifier_exist(name):
    with torch.device("meta"):
        model = build(name)
    cfg = model.pretrained_cfg
    heads = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else cfg["classifier"]
    state = model.state_dict()
    assert f"{cfg['first_conv']}.weight" in state
    assert all(f"{head}.weight" in state for head in heads)
    assert cfg == model.default_cfg
    assert model.get_classifier() is model.get_submodule(heads[0])
    assert isinstance(model.get_submodule(cfg["first_conv"]), torch.nn.Conv2d)
    model.reset_classifier(0)
    assert not any(key.startswith(tuple(f"{head}." for head in heads)) for key in model.state_dict())


def test_public_names():
    for name in elsa.models.__all__:
        assert hasattr(elsa.models, name)


@pytest.mark.parametrize("misspelt", ["elsa_kernal", "num_clases", "drop_path", "gama"])
def test_misspelt_keyword_is_an_error(misspelt):
    with pytest.raises(TypeError, match=misspelt):
        build(**{misspelt: 3})


@pytest.mark.parametrize("name", VARIANTS)
def test_pretrained_says_that_there_are_no_weights(name):
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        build(name, pretrained=True)


def test_the_spec_is_a_default_that_keywords_override():
    model = build(elsa_kernel=5, group_width=8, lam=1, gamma=0.5, img_size=96, depths=(1, 1, 1, 1))
    attention = model.layers[0].blocks[0].attn
    assert (attention.kernel_size, attention.lam, attention.gamma) == (5, 1, 0.5)
    assert attention.attn[0].weight.shape[1] == 8
    assert [len(stage.blocks) for stage in model.layers] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", VARIANTS)
def test_model_can_be_built_without_memory(name):
    with torch.device("meta"):
        model = build(name)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


# ---- classification


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("batch", [1, 2])
def test_forward_and_backward(name, batch):
    """Finite outputs, and every parameter gets a gradient."""
    model = build(name, num_classes=42).train()
    out = model(image(batch, height=64, width=96))
    assert out.shape == (batch, 42)
    out.mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert out.isfinite().all()


@pytest.mark.parametrize("name", CHEAP)
def test_size_channels_classes_and_drop_path_are_taken(name):
    model = build(name, num_classes=7, img_size=(48, 80), in_chans=1, drop_path_rate=0.25, drop_rate=0.1).eval()
    assert model.num_classes == 7
    if name == VOLO:
        assert model.pos_embed.shape == (1, 3, 5, 128)
    else:
        assert model.patch_embed.img_size == (48, 80)
        assert model.patch_embed.grid_size == (12, 20)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates[-1] == max(rates) == pytest.approx(0.25)
    assert model.head_drop.p == 0.1
    assert model(image(1, 1, 48, 80)).shape == (1, 7)
    with pytest.raises(RuntimeError):
        model(image(1, 3, 48, 80))


@pytest.mark.parametrize("name", [NANO, "elsa_swin_tiny"])
def test_features_head_and_logits_agree(name):
    model = build(name).eval()
    x = image()
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 2, 2, model.num_features)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size)
        logits = model.forward_head(features)
        torch.testing.assert_close(logits, model(x))
        torch.testing.assert_close(model.get_classifier()(pooled), logits)
        torch.testing.assert_close(pooled, features.mean((1, 2)))


@pytest.mark.parametrize("name", NANOS)
@pytest.mark.parametrize("how", ["created", "reset"])
def test_no_classes_gives_features(name, how):
    model = build(name, num_classes=0) if how == "created" else build(name)
    if how == "reset":
        model.reset_classifier(0)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    assert model.num_classes == 0
    model.eval()
    x = image()
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = features[:, 0] if name == VOLO else features.mean((1, 2))
        torch.testing.assert_close(model(x), pooled)


@pytest.mark.parametrize("how", ["created", "reset"])
def test_no_pooling_gives_the_map(how):
    model = build(num_classes=0, global_pool="") if how == "created" else build()
    if how == "reset":
        model.reset_classifier(0, "")
    model.eval()
    x = image(height=224, width=224)
    with torch.no_grad():
        out = model(x)
        assert torch.equal(out, model.forward_features(x))
    assert out.shape == (2, *model.pretrained_cfg["pool_size"], model.num_features)


def test_max_pooling():
    model = build(num_classes=0, global_pool="max").eval()
    x = image()
    with torch.no_grad():
        assert torch.equal(model(x), model.forward_features(x).amax((1, 2)))


def test_reset_classifier_makes_a_fresh_head_and_keeps_the_rest():
    model = build(global_pool="max").eval()
    before = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("head.")}
    model.reset_classifier(13)
    assert model.global_pool == "max"
    assert model(image()).shape == (2, 13)
    assert (model.num_classes, model.get_classifier().out_features) == (13, 13)
    assert not model.get_classifier().bias.any()
    assert model.get_classifier().weight.std().item() == pytest.approx(0.02, rel=0.1)
    for key, value in before.items():
        assert torch.equal(value, model.state_dict()[key]), key
    model.reset_classifier(4, "avg")
    assert model.global_pool == "avg"
    with pytest.raises(ValueError, match="'mean'"):
        model.reset_classifier(4, "mean")


@pytest.mark.parametrize("name", NANOS)
def test_reset_classifier_keeps_the_dtype(name):
    model = build(name).double()
    model.reset_classifier(3)
    assert model(image().double()).dtype == torch.float64


# ---- training aids


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (NANO, {}),
        (NANO, SHIFTED),
        (NANO, dict(drop_path_rate=0.5, proj_drop_rate=0.3)),
        (VOLO, {}),
        (VOLO, dict(drop_path_rate=0.5, pos_drop_rate=0.3)),
    ],
    ids=str,
)
def test_checkpointing_changes_neither_outputs_nor_gradients(name, arguments):
    plain = build(name, num_classes=5, **arguments).train()
    recomputed = copy.deepcopy(plain)
    recomputed.set_grad_checkpointing()
    x = image(height=128, width=128)
    calls = []
    watched = recomputed.network[2][0] if name == VOLO else recomputed.layers[1].blocks[0]
    watched.attn.register_forward_pre_hook(lambda *_: calls.append(1))
    outputs = []
    for model in (plain, recomputed):
        torch.manual_seed(1)
        outputs.append(model(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    assert len(calls) == 2  # forward, and again in backward
    for (name, one), other in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)

    recomputed.set_grad_checkpointing(False)
    recomputed(x).sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("name", [name for name in VARIANTS if "swin" in name])
def test_layer_groups_rise_from_stem_to_head(name):
    with torch.device("meta"):
        model = build(name, ape=True)
    depth = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(depth) == {key for key, _ in model.named_parameters()}
    assert {depth[key] for key in depth if key.startswith(("patch_embed", "absolute_pos_embed"))} == {0}

    previous = 0
    for stage, blocks in enumerate(VARIANTS[name].depths):
        for block in range(blocks):
            of_block = {value for key, value in depth.items() if key.startswith(f"layers.{stage}.blocks.{block}.")}
            assert of_block == {previous + 1}
            previous += 1
        merging = {value for key, value in depth.items() if key.startswith(f"layers.{stage}.downsample.")}
        assert merging <= {previous, previous + 1}  # with the block before it or the one after
    assert {value for key, value in depth.items() if key.startswith("norm.")} <= {previous, previous + 1}
    head = {value for key, value in depth.items() if key.startswith("head.")}
    assert head == {max(depth.values())}
    assert min(head) > previous

    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    for stage in range(len(VARIANTS[name].depths)):
        assert {value for key, value in coarse.items() if key.startswith(f"layers.{stage}.")} == {stage + 1}


def test_layer_decay_scales_learning_rates_from_head_to_stem():
    model = build()
    groups = param_groups_layer_decay(model, 0.05, layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    named = {key: scale[id(parameter)] for key, parameter in model.named_parameters()}
    blocks = sum(VARIANTS[NANO].depths)
    assert named["head.weight"] == 1
    assert named["patch_embed.proj.weight"] == pytest.approx(0.5 ** (blocks + 1))
    assert named["layers.0.blocks.0.attn.ghost_head"] == pytest.approx(0.5**blocks)


def test_only_biases_norms_and_position_embedding_escape_weight_decay():
    model = build(ape=True)
    assert model.no_weight_decay() == {"absolute_pos_embed"}
    assert build().no_weight_decay() == set()
    exempt, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert (exempt["weight_decay"], decayed["weight_decay"]) == (0, 0.05)
    ids = {id(parameter) for parameter in exempt["params"]}
    names = [key for key, parameter in model.named_parameters() if id(parameter) in ids]
    assert all(re.search(r"(bias|norm\d?\.weight|absolute_pos_embed)$", key) for key in names)
    kept = [key for key, parameter in model.named_parameters() if id(parameter) not in ids]
    assert any(key.endswith(".rb") for key in kept)
    assert any(key.endswith("ghost_head") for key in kept)


# ---- sizes


def test_set_input_size_resizes_the_position_embedding():
    model = build(ape=True, img_size=64).eval()
    x = image(height=96, width=128)
    with torch.no_grad():
        before = model(x)
        model.set_input_size((96, 128))
        assert model.patch_embed.grid_size == (24, 32)
        assert model.absolute_pos_embed.shape == (1, 24 * 32, 32)
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-4)  # resized once instead of in every pass
    assert model.absolute_pos_embed.requires_grad
    fresh = build(ape=True, img_size=(96, 128))
    fresh.load_state_dict(model.state_dict())


def test_set_input_size_alone_changes_nothing_without_a_position_embedding():
    model = build().eval()
    x = image(height=80, width=64)
    with torch.no_grad():
        before = model(x)
        model.set_input_size(img_size=80)
        assert torch.equal(model(x), before)


def test_another_window_size_is_a_model_built_with_it():
    model = build(**SHIFTED).eval()
    x = image(height=160, width=160)
    with torch.no_grad():
        before = model(x)
        model.set_input_size(window_size=2)
        fresh = build(**{**SHIFTED, "window_size": 2}).eval()
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(model(x), fresh(x))
        assert not torch.allclose(model(x), before)
    for window in (3, 1, 3):  # a window of one has no shift, but the next one has again
        model.set_input_size(window_size=window)
    fresh = build(**SHIFTED).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), fresh(x))
    with pytest.raises(ValueError, match="window_size"):
        model.set_input_size(window_size=0)


def test_setting_the_same_window_size_changes_nothing():
    model = build(**SHIFTED).eval()
    x = image(height=160, width=160)
    with torch.no_grad():
        before = model(x)
        model.set_input_size(window_size=3)
        assert torch.equal(model(x), before)


# ---- checkpoints, export


@pytest.mark.parametrize("name", NANOS)
@pytest.mark.parametrize("form", ["bare.pth", "timm.pth", "weights.safetensors"])
def test_checkpoint_path_loads(name, form, tmp_path):
    from safetensors.torch import save_file

    source, path = build(name, num_classes=3).eval(), tmp_path / form
    state = source.state_dict()
    if form.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state if form == "bare.pth" else {"state_dict": state, "epoch": 3}, path)
    loaded = build(name, num_classes=3, checkpoint_path=str(path)).eval()
    x = image()
    assert torch.equal(source(x), loaded(x))


def test_pretrained_file_is_adapted_to_other_channels_and_classes(tmp_path):
    source, path = build(), tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    overlay = dict(file=str(path))
    model = build(pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=5)
    torch.testing.assert_close(model.patch_embed.proj.weight, source.patch_embed.proj.weight.sum(1, keepdim=True))
    assert model.head.out_features == 5
    assert torch.equal(model.norm.weight, source.norm.weight)
    maps = build(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=(0, 2))
    assert torch.equal(maps.model.layers[2].blocks[1].mlp.fc1.weight, source.layers[2].blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(NANO, {}), (NANO, dict(SHIFTED, ape=True, img_size=64)), (VOLO, dict(img_size=64))],
    ids=["plain", "shifted, ape", "volo"],
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed batch", "dynamic batch"])
def test_exported_model_gives_the_same_outputs(name, arguments, dynamic):
    model = build(name, num_classes=5, elsa_kernel=3, **arguments).eval()
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}} if dynamic else None
    x = image(2, height=128, width=128)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=shapes)
        for batch in (1, 2, 5) if dynamic else (2,):
            x = image(batch, height=128, width=128)
            torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-4)


def test_copies_are_independent():
    model = build()
    twin = copy.deepcopy(model)
    assert isinstance(twin, ELSASwin)
    with torch.no_grad():
        twin.head.weight.zero_()
    assert model.head.weight.any()
