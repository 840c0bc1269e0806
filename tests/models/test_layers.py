"""The parts kept from Swin Transformer against timm's and against plain loops."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models.swin_transformer import WindowAttention as TimmWindowAttention
from torch import nn

from elsa.models import ELSASwin, ELSASwinMaps
from elsa.models.layers import (
    PatchMerging,
    WindowAttention,
    WindowBlock,
    merge_windows,
    partition_windows,
    shifted_window_mask,
)

SMALL = dict(embed_dim=16, depths=(1, 1, 1, 2), num_heads=(1, 2, 4, 8), elsa_kernel=3, window_size=2)


def small_maps(**changes):
    torch.manual_seed(0)
    return ELSASwinMaps(**{**SMALL, **changes})


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
    attention, window, shift = block.attn, block.window_size, block.window_size // 2
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
    block = WindowBlock(8, 2, window_size=3, shifted=True, shift_small_maps=True, mlp_ratio=2).double()
    nn.init.normal_(block.attn.rb)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(block.window_attention(x), attend_by_hand(block, x))


@pytest.mark.parametrize("size", [(3, 3), (2, 9), (9, 3), (4, 4), (4, 9)], ids=str)
def test_small_maps_are_shifted_only_where_asked(size):
    """In classification no shift where the smaller side is no larger than the window; in dense use always."""
    torch.manual_seed(0)
    arguments = dict(window_size=3, mlp_ratio=2)
    plain = WindowBlock(8, 2, shifted=False, shift_small_maps=True, **arguments).eval()
    nn.init.normal_(plain.attn.rb)
    blocks = {}
    for rule in (False, True):
        blocks[rule] = WindowBlock(8, 2, shifted=True, shift_small_maps=rule, **arguments).eval()
        blocks[rule].load_state_dict(plain.state_dict())
    x = torch.randn(1, *size, 8)
    assert torch.equal(blocks[False](x), plain(x)) == (min(size) <= 3)
    assert not torch.allclose(blocks[True](x), plain(x))


def test_the_two_networks_differ_in_the_shift_rule_alone():
    classifier, backbone = ELSASwin(**SMALL), small_maps()
    rules = [
        [m.shift_small_maps for m in net.modules() if isinstance(m, WindowBlock)] for net in (classifier, backbone)
    ]
    shifts = [[m.shifted for m in net.modules() if isinstance(m, WindowBlock)] for net in (classifier, backbone)]
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
