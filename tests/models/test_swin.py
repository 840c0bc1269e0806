"""ELSA-Swin: the authors' values, any input size, the parts kept from Swin, and the backbone for dense tasks."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from elsa.models import VARIANTS, ELSABlock, ELSASwin, ELSASwinMaps
from elsa.models.layers import (
    PatchEmbed,
    WindowBlock,
)

RELEASED = {"elsa_swin_tiny": 29.14, "elsa_swin_small": 52.87, "elsa_swin_base": 92.68}
SMALL = dict(embed_dim=16, depths=(1, 1, 1, 2), num_heads=(1, 2, 4, 8), elsa_kernel=3, window_size=2)


def relative_error(actual, expected):
    actual = actual.detach().numpy()
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def small_maps(**changes):
    torch.manual_seed(0)
    return ELSASwinMaps(**{**SMALL, **changes})


def shapes(module):
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


# ---- the authors' values


def test_classification_equals_the_authors(golden):
    stored = golden.npz("classification")
    model = golden.fill_(timm.create_model("elsa_swin_tiny")).eval()
    with torch.no_grad():
        last = model.forward_features(golden.tensor("image(2, 3, 224, 224)", 2, 3, 224, 224))
        assert relative_error(last.mean((1, 2)), stored["elsa_swin_tiny/features"]) < 1e-4
        assert relative_error(model.forward_head(last, pre_logits=True), stored["elsa_swin_tiny/features"]) < 1e-4
        assert relative_error(model.forward_head(last), stored["elsa_swin_tiny/logits"]) < 1e-4


def test_dense_maps_equal_the_authors(golden):
    case, stored = golden.json("dense_backbone")["elsa_swin_tiny"], golden.npz("dense_backbone")
    model = ELSASwinMaps(**case["kwargs"])
    assert shapes(model) == case["state"]
    golden.fill_(model).eval()
    with torch.no_grad():
        maps = model(golden.tensor("image(1, 3, 200, 300)", *case["input"]))
    assert [list(level.shape) for level in maps] == case["shapes"]
    for index, level in enumerate(maps):
        assert relative_error(level[:, :4], stored[f"elsa_swin_tiny/level{index}_head"]) < 1e-4
        assert relative_error(level.mean((2, 3)), stored[f"elsa_swin_tiny/level{index}_mean"]) < 1e-4


@pytest.mark.parametrize("name", RELEASED)
def test_names_and_shapes_are_those_of_the_released_checkpoints(golden, name):
    assert shapes(timm.create_model(name)) == golden.json("released_state_dicts")[name]


def test_every_released_model_is_compared(golden):
    assert set(golden.json("released_state_dicts")) == set(RELEASED)


@pytest.mark.parametrize(("name", "millions"), RELEASED.items())
def test_parameter_counts_are_the_published_ones(name, millions):
    model = timm.create_model(name)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


# ---- the network


def test_elsa_in_the_first_three_stages_windows_in_the_last():
    model = timm.create_model("elsa_swin_nano")
    kinds = [{type(block) for block in stage.blocks} for stage in model.layers]
    assert kinds == [{ELSABlock}] * 3 + [{WindowBlock}]


def test_blocks_use_qk_scale_one_unless_told():
    for chosen, expected in (({}, 1), (dict(qk_scale=0.5), 0.5), (dict(qk_scale=None), 16**-0.5)):
        model = ELSASwin(**SMALL, **chosen)
        assert model.layers[0].blocks[0].attn.scale == pytest.approx(expected)


def test_drop_path_rises_linearly_from_zero_over_all_blocks():
    model = timm.create_model("elsa_swin_nano", drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.4, len(rates)).tolist())


@pytest.mark.parametrize("name", RELEASED)
def test_drop_path_of_the_released_recipes(name):
    published = {"elsa_swin_tiny": 0.1, "elsa_swin_small": 0.3, "elsa_swin_base": 0.5}[name]
    assert VARIANTS[name].drop_path_rate == published
    assert timm.create_model(name).layers[-1].blocks[-1].drop_path.drop_prob == pytest.approx(published)


def test_initialisation_of_linear_layers_is_the_published_one():
    torch.manual_seed(0)
    model = timm.create_model("elsa_swin_nano")
    checked = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 4000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.bias is None or not module.bias.any(), name
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 64), (33, 65), (71, 40), (64, 64), (57, 229)], ids=str)
def test_any_input_size(size):
    height, width = size
    torch.manual_seed(0)
    classifier, backbone = ELSASwin(num_classes=5, **SMALL).eval(), small_maps().eval()
    image = torch.randn(2, 3, height, width)
    with torch.no_grad():
        logits, maps = classifier(image), backbone(image)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    for index, level in enumerate(maps):
        stride = 4 * 2**index
        assert level.shape == (2, 16 * 2**index, -(-height // stride), -(-width // stride))
        assert level.isfinite().all()


def test_input_is_padded_with_zeros_at_the_right_and_bottom():
    torch.manual_seed(0)
    embed = PatchEmbed(32, 4, 3, 8)
    image = torch.randn(1, 3, 9, 14)
    padded = torch.zeros(1, 3, 12, 16)
    padded[..., :9, :14] = image
    assert torch.equal(embed(image), embed(padded))


def test_images_of_a_batch_do_not_influence_each_other():
    model = small_maps().eval()
    image = torch.randn(3, 3, 70, 50)
    with torch.no_grad():
        together, alone = model(image), model(image[1:2])
    for whole, single in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:2], single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(depths=(1, 1)), ["depths", "(1, 1)"]),
        (dict(attention=("elsa", "elsa", "elsa", "windows")), ["windows"]),
        (dict(img_size=0), ["img_size", "0"]),
        (dict(num_heads=(1, 2, 4, 7)), ["num_heads", "7"]),
        (dict(window_size=0), ["window_size", "0"]),
    ],
    ids=str,
)
def test_refused_arguments_are_named(changes, said):
    with pytest.raises(ValueError) as caught:
        ELSASwin(**{**SMALL, **changes})
    for word in said:
        assert word in str(caught.value)


# ---- maps


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (3,), (1, 3), (0,)], ids=str)
def test_out_indices_choose_levels_and_their_norms(indices):
    whole, chosen = small_maps().eval(), small_maps(out_indices=indices).eval()
    norms = {name for name, _ in chosen.named_children() if name.startswith("norm")}
    assert norms == {f"norm{index}" for index in indices}
    missing, _ = chosen.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    image = torch.randn(1, 3, 40, 70)
    with torch.no_grad():
        every, some = whole(image), chosen(image)
    assert len(some) == len(indices)
    for level, index in zip(some, indices, strict=True):
        assert torch.equal(level, every[index])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(out_indices=(0, 4)), ["out_indices", "(0, 4)"]),
        (dict(out_indices=(-1,)), ["out_indices", "(-1,)"]),
        (dict(out_indices=()), ["out_indices"]),
        (dict(frozen_stages=5), ["frozen_stages", "5"]),
        (dict(frozen_stages=-2), ["frozen_stages", "-2"]),
    ],
    ids=str,
)
def test_maps_refuse_levels_that_are_not_there(changes, said):
    with pytest.raises(ValueError) as caught:
        small_maps(**changes)
    for word in said:
        assert word in str(caught.value)


@pytest.mark.parametrize("frozen", [-1, 0, 1, 2, 4])
def test_frozen_stages_neither_learn_nor_drop(frozen):
    model = small_maps(frozen_stages=frozen, drop_path_rate=0.5, drop_rate=0.5, ape=True, img_size=64)
    inside = ["patch_embed", "absolute_pos_embed"] * (frozen >= 0) + [f"layers.{stage}." for stage in range(frozen)]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(tuple(inside))), name

    for mode in (True, False, True):
        assert model.train(mode) is model
        assert model.training == mode
        for name, module in model.named_modules():
            if f"{name}.".startswith(tuple(inside)) or (frozen >= 0 and name == "pos_drop"):
                assert not module.training, name
            elif name.startswith("layers."):
                assert module.training == mode, name

    maps = model(torch.randn(2, 3, 64, 64))
    sum(level.square().sum() for level in maps).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith(tuple(inside))), name


def test_frozen_maps_are_the_same_in_training():
    model = small_maps(frozen_stages=4, drop_path_rate=0.9, drop_rate=0.5).train()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for first, second in zip(model(image), model(image), strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("frozen", [-1, 2])
def test_maps_checkpointing_changes_neither_maps_nor_gradients(frozen):
    model = small_maps(frozen_stages=frozen)
    image = torch.randn(1, 3, 64, 48)
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        maps = model(image)
        sum(level.square().sum() for level in maps).backward()
        results.append(
            [*maps, *(parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad)]
        )
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


# ---- absolute position embedding


def test_position_embedding_has_the_published_layouts():
    classifier, backbone = ELSASwin(ape=True, img_size=224, **SMALL), small_maps(ape=True, img_size=224)
    assert classifier.absolute_pos_embed.shape == (1, 56 * 56, 16)
    assert backbone.absolute_pos_embed.shape == (1, 16, 56, 56)
    assert classifier.absolute_pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert ELSASwin(**SMALL).absolute_pos_embed is None


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (70, 33), (128, 128)], ids=str)
def test_position_embedding_is_resized_bicubically_to_the_map(size):
    """The table follows the image's own map, in both layouts; at the nominal size it is added as it is."""
    torch.manual_seed(0)
    classifier = ELSASwin(ape=True, img_size=(64, 96), **SMALL).eval()
    backbone = small_maps(ape=True, img_size=(64, 96)).eval()
    grid = torch.randn(1, 16, 16, 24)
    with torch.no_grad():
        backbone.absolute_pos_embed.copy_(grid)
        classifier.absolute_pos_embed.copy_(grid.flatten(2).transpose(1, 2))
    target = tuple(-(-side // 4) for side in size)
    expected = (
        nn.functional.interpolate(grid, target, mode="bicubic", align_corners=False) if target != (16, 24) else grid
    )
    image = torch.randn(1, 3, *size)
    for model in (classifier, backbone):
        added = model.embed(image) - model.patch_embed(image)
        torch.testing.assert_close(added, expected.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-4)
