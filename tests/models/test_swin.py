"""ELSA-Swin: the authors' values, any input size, the parts kept from Swin, and the backbone for dense tasks."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models.swin_transformer import WindowAttention as TimmWindowAttention
from torch import nn

from elsa.models import VARIANTS, ELSABlock, ELSASwin, ELSASwinMaps
from elsa.models.layers import (
    PatchEmbed,
    PatchMerging,
    WindowAttention,
    WindowBlock,
    merge_windows,
    partition_windows,
    shifted_window_mask,
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


# ---- parts kept from Swin


def test_patch_merging_order():
    """(even row, even column), (odd, even), (even, odd), (odd, odd); odd maps are zero-padded first."""
    torch.manual_seed(0)
    merging = PatchMerging(3).double()
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    padded = torch.zeros(2, 6, 4, 3, dtype=torch.float64)
    padded[:, :5, :3] = x
    gathered = torch.empty(2, 3, 2, 12, dtype=torch.float64)
    for i in range(3):
        for j in range(2):
            corners = [padded[:, 2 * i + di, 2 * j + dj] for di, dj in ((0, 0), (1, 0), (0, 1), (1, 1))]
            gathered[:, i, j] = torch.cat(corners, 1)
    assert torch.equal(merging(x), merging.reduction(merging.norm(gathered)))
    assert merging.reduction.bias is None


def timm_twin(ours, dim, heads, window):
    """timm's window attention with the weights of ours."""
    twin = TimmWindowAttention(dim, num_heads=heads, window_size=window)
    (wv, wq, wk), (bv, bq, bk) = ours.pre_proj.weight.chunk(3), ours.pre_proj.bias.chunk(3)
    twin.load_state_dict(
        {
            "relative_position_bias_table": ours.rb.flip(1).T,
            "qkv.weight": torch.cat([wq, wk, wv]),
            "qkv.bias": torch.cat([bq, bk, bv]),
            "proj.weight": ours.post_proj.weight,
            "proj.bias": ours.post_proj.bias,
        }
    )
    return twin.double()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [2, 3, 7])
def test_window_attention_is_timms_with_the_table_flipped(window, masked):
    torch.manual_seed(0)
    ours = WindowAttention(16, 4, window).double()
    nn.init.normal_(ours.rb)
    nn.init.normal_(ours.pre_proj.bias)
    x = torch.randn(6, window**2, 16, dtype=torch.float64)
    mask = (torch.rand(3, window**2, window**2) < 0.4).double() * -100 if masked else None
    torch.testing.assert_close(ours(x, mask), timm_twin(ours, 16, 4, window)(x, mask))


@pytest.mark.parametrize(("old", "new"), [(7, 7), (4, 7), (7, 4)])
def test_another_window_size_resizes_the_bias_table_as_timm_does(old, new):
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, old)
    nn.init.normal_(attention.rb)
    theirs = resize_rel_pos_bias_table(attention.rb.flip(1).T, (new, new), ((2 * new - 1) ** 2, 2))
    attention.set_window_size(new)
    torch.testing.assert_close(attention.rb.flip(1).T, theirs)
    assert attention(torch.randn(3, new**2, 8)).shape == (3, new**2, 8)


@pytest.mark.parametrize("size", [(3, 3), (6, 9), (12, 3)], ids=str)
def test_windows_come_apart_and_together_again(size):
    x = torch.randn(2, *size, 5)
    windows = partition_windows(x, 3)
    assert torch.equal(windows[0].reshape(3, 3, 5), x[0, :3, :3])
    assert torch.equal(merge_windows(windows, 3, *size), x)


@pytest.mark.parametrize(("height", "width", "window", "shift"), [(6, 9, 3, 1), (8, 4, 4, 2), (7, 14, 7, 3)])
def test_mask_separates_what_the_cyclic_shift_joined(height, width, window, shift):
    """Two positions of a window see each other where rolling did not carry just one of them around the map."""
    rows = torch.arange(height).roll(-shift)[:, None].expand(height, width)
    columns = torch.arange(width).roll(-shift)[None].expand(height, width)
    mask = shifted_window_mask(height, width, window, shift, torch.device("cpu"))
    across = width // window
    for number in range((height // window) * across):
        top, left = number // across * window, number % across * window
        places = [(top + i, left + j) for i in range(window) for j in range(window)]
        source = [(rows[place].item(), columns[place].item()) for place in places]
        for a, (row, column) in enumerate(source):
            for b, (other_row, other_column) in enumerate(source):
                neighbours = abs(row - other_row) < window and abs(column - other_column) < window
                # In a map of one window everything is near: there the wrap itself tells.
                wrapped = (row < shift) != (other_row < shift) and top + window == height
                wrapped |= (column < shift) != (other_column < shift) and left + window == width
                assert (mask[number, a, b].item() == 0) == (neighbours and not wrapped)


def attend_by_hand(block, x):
    """Shifted-window attention without rolling: every position looks up its window and region by itself."""
    attention, window, shift = block.attn, block.window_size, block.shift
    batch, height, width, dim = x.shape
    tall, wide = -(-height // window) * window, -(-width // window) * window
    padded = torch.zeros(batch, tall, wide, dim, dtype=x.dtype)
    padded[:, :height, :width] = x
    packed = attention.pre_proj(padded).unflatten(-1, (3, attention.num_heads, -1))
    value, query, key = packed.unbind(3)
    out = torch.zeros_like(value)

    def place(position, size):
        """Window along one axis, offset in it, and whether the shift carried the position around."""
        moved = (position - shift) % size
        return moved // window, moved % window, position < shift

    for i in range(tall):
        for j in range(wide):
            (wi, oi, ri), (wj, oj, rj) = place(i, tall), place(j, wide)
            logits, members = [], []
            for k in range(tall):
                for m in range(wide):
                    (wk, ok, rk), (wm, om, rm) = place(k, tall), place(m, wide)
                    if (wi, wj) == (wk, wm):
                        bias = attention.rb[:, (ok - oi + window - 1) * (2 * window - 1) + om - oj + window - 1]
                        score = (query[:, i, j] * key[:, k, m]).sum(-1) * query.shape[-1] ** -0.5 + bias
                        logits.append(score - 100.0 * ((ri, rj) != (rk, rm)))
                        members.append(value[:, k, m])
            weights = torch.stack(logits).softmax(0)
            out[:, i, j] = (weights[..., None] * torch.stack(members)).sum(0)
    return attention.post_proj(out.flatten(3))[:, :height, :width]


@pytest.mark.parametrize("size", [(5, 7), (6, 3), (4, 4), (2, 3), (3, 1)], ids=str)
def test_shifted_windows_on_maps_that_are_no_multiple(size):
    torch.manual_seed(0)
    block = WindowBlock(8, 2, window_size=3, shift=1, shift_small_maps=True, mlp_ratio=2).double()
    nn.init.normal_(block.attn.rb)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(block.window_attention(x), attend_by_hand(block, x))


@pytest.mark.parametrize("size", [(3, 3), (2, 9), (9, 3), (4, 4), (4, 9)], ids=str)
def test_small_maps_are_shifted_only_where_asked(size):
    """In classification no shift where the smaller side is no larger than the window; in dense use always."""
    torch.manual_seed(0)
    arguments = dict(window_size=3, mlp_ratio=2)
    plain = WindowBlock(8, 2, shift=0, shift_small_maps=True, **arguments).eval()
    nn.init.normal_(plain.attn.rb)
    blocks = {}
    for rule in (False, True):
        blocks[rule] = WindowBlock(8, 2, shift=1, shift_small_maps=rule, **arguments).eval()
        blocks[rule].load_state_dict(plain.state_dict())
    x = torch.randn(1, *size, 8)
    assert torch.equal(blocks[False](x), plain(x)) == (min(size) <= 3)
    assert not torch.allclose(blocks[True](x), plain(x))


def test_the_two_networks_differ_in_the_shift_rule_alone():
    classifier, backbone = ELSASwin(**SMALL), small_maps()
    rules = [
        [m.shift_small_maps for m in net.modules() if isinstance(m, WindowBlock)] for net in (classifier, backbone)
    ]
    shifts = [[m.shift for m in net.modules() if isinstance(m, WindowBlock)] for net in (classifier, backbone)]
    assert rules == [[False, False], [True, True]]
    assert shifts == [[0, 1], [0, 1]]

    chosen = small_maps(shift_small_maps=False).eval()
    backbone.eval()
    for maps in (backbone, chosen):
        missing, unexpected = maps.load_state_dict(classifier.state_dict(), strict=False)
        assert all(name.startswith("norm") for name in missing)
        assert {name.split(".")[0] for name in unexpected} == {"norm", "head"}
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        level = classifier.eval().forward_intermediates(image, indices=1, intermediates_only=True)[0]
        same, other = (net.norm3(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for net in (chosen, backbone))
        torch.testing.assert_close(chosen(image)[3], same)
        assert not torch.allclose(backbone(image)[3], other)


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
            if name.startswith(tuple(inside)) or (frozen >= 0 and name == "pos_drop"):
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
