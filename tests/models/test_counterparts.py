"""The operators that the paper compares ELSA with, in Swin's slot."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from elsa.kernels import portable
from elsa.models.counterparts import Depthwise, DynamicFilters, NeighbourhoodAttention
from elsa.models.registry import VARIANTS
from elsa.models.swin import ATTENTIONS, ELSASwin, ELSASwinMaps

LOCAL = [name for name in ATTENTIONS if name != "window"]


def swin(kind, **kwargs):
    torch.manual_seed(0)
    return timm.create_model("elsa_swin_nano", num_classes=5, attention=(kind,) * 3 + ("window",), **kwargs)


def by_position(module, x, neighbours):
    """Dot-product attention of a module, position by position; ``neighbours(y, x)`` gives (row, column, bias)."""
    batch, height, width, dim = x.shape
    heads = module.num_heads
    query, key, value = module.pre_proj(x).unflatten(-1, (3, heads, -1)).unbind(-3)
    out = torch.zeros(batch, height, width, heads, dim // heads, dtype=x.dtype)
    for y in range(height):
        for column in range(width):
            logits, values = [], []
            for row, col, bias in neighbours(y, column):
                inside = 0 <= row < height and 0 <= col < width
                there = key[:, row, col] if inside else torch.zeros_like(key[:, 0, 0])
                logits.append((query[:, y, column] * there).sum(-1) * module.scale + bias)
                values.append(value[:, row, col] if inside else torch.zeros_like(there))
            attn = torch.stack(logits, -1).softmax(-1)
            out[:, y, column] = torch.einsum("bgt,tbgc->bgc", attn, torch.stack(values))
    return module.post_proj(out.flatten(-2))


@pytest.mark.parametrize("dilation", [1, 2])
def test_attention_to_a_neighbourhood_that_reaches_beyond_the_map(dilation):
    torch.manual_seed(0)
    module = NeighbourhoodAttention(6, 2, kernel_size=3, dilation=dilation).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.double)

    def neighbours(y, column):
        for t in range(9):
            row, col = t // 3 - 1, t % 3 - 1
            yield y + row * dilation, column + col * dilation, module.rpb[:, row + 1, col + 1]

    torch.testing.assert_close(module(x), by_position(module, x, neighbours))


@pytest.mark.parametrize("dilation, size", [(1, (4, 6)), (2, (7, 6))])
def test_attention_to_a_neighbourhood_moved_inside(dilation, size):
    """The definition of neighbourhood attention: K neighbours on each axis, of those that the dilation reaches."""
    torch.manual_seed(0)
    module = NeighbourhoodAttention(6, 2, kernel_size=3, dilation=dilation, border="inside").double()
    x = torch.randn(2, *size, 6, dtype=torch.double)

    def axis(position, length):
        line = list(range(position % dilation, length, dilation))
        start = min(max(line.index(position) - 1, 0), len(line) - 3)
        return line[start : start + 3]

    def neighbours(y, column):
        for row in axis(y, size[0]):
            for col in axis(column, size[1]):
                yield row, col, module.rpb[:, (row - y) // dilation + 2, (col - column) // dilation + 2]

    torch.testing.assert_close(module(x), by_position(module, x, neighbours))


def test_it_gives_the_numbers_of_natten():
    natten = pytest.importorskip("natten", reason="NATTEN is not installed")
    torch.manual_seed(0)
    module = NeighbourhoodAttention(32, 2, kernel_size=3, border="inside", position_bias=False)
    x = torch.randn(1, 8, 9, 32)
    query, key, value = module.pre_proj(x).unflatten(-1, (3, 2, -1)).unbind(-3)
    out = natten.na2d(query, key, value, kernel_size=3, scale=module.scale)
    torch.testing.assert_close(module(x), module.post_proj(out.flatten(-2)), rtol=1e-4, atol=1e-5)


def test_parametric_weights_depend_on_the_position_alone():
    torch.manual_seed(0)
    module = NeighbourhoodAttention(8, 2, kernel_size=3, generation="parametric")
    x = torch.randn(1, 5, 5, 8)
    logits = module.generate(x)[0, 2, 2].unflatten(0, (2, 9)) + module.rpb.flatten(1)
    value = module.pre_proj(x)[0, 1:4, 1:4].reshape(9, 2, 4)
    expected = module.post_proj(torch.einsum("gt,tgc->gc", logits.softmax(-1), value).flatten())
    torch.testing.assert_close(module(x)[0, 2, 2], expected)


def test_ghost_heads_act_on_dot_products_as_on_elsa():
    torch.manual_seed(0)
    module = NeighbourhoodAttention(8, 2, kernel_size=3, lam=1, gamma=2)
    x = torch.randn(1, 3, 3, 8)
    query, key, value = module.pre_proj(x).split(8, -1)
    logits = torch.einsum("gc,tgc->gt", query[0, 1, 1].unflatten(0, (2, 4)), key.reshape(9, 2, 4)) * module.scale
    attn = (logits + module.rpb.flatten(1)).softmax(-1).repeat_interleave(4, 0)
    maps = attn * module.ghost_head[0, 0].flatten(1) + 2 * module.ghost_head[1, 0].flatten(1)
    expected = module.post_proj((maps * value.reshape(9, 8).T).sum(-1))
    torch.testing.assert_close(module(x)[0, 1, 1], expected)


def test_dynamic_filters_are_a_spatial_one_times_a_channels():
    torch.manual_seed(0)
    module = DynamicFilters(8, 2, kernel_size=3)
    x = torch.randn(2, 3, 3, 8)

    def normalised(filters, which):
        centred = filters - filters.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5) * module.deviation[which][:, None]

    spatial = normalised(module.spatial(x)[:, 1, 1].unflatten(-1, (2, 9)), 0).repeat_interleave(4, 1)
    channel = normalised(module.channel(x.mean((1, 2))).unflatten(-1, (8, 9)), 1)
    value = module.pre_proj(x).reshape(2, 9, 8).transpose(1, 2)
    expected = module.post_proj((spatial * channel * value).sum(-1))
    torch.testing.assert_close(module(x)[:, 1, 1], expected)


def test_a_depthwise_convolution_knows_no_image():
    torch.manual_seed(0)
    module = Depthwise(8, kernel_size=3)
    x, y = torch.randn(2, 1, 5, 5, 8)
    sum_of = module(x + y) - module(torch.zeros_like(x))
    torch.testing.assert_close(sum_of, module(x) + module(y) - 2 * module(torch.zeros_like(x)))


@pytest.mark.parametrize("kind", LOCAL)
def test_any_of_them_takes_the_slot_and_learns(kind):
    model = swin(kind)
    model(torch.randn(2, 3, 40, 56)).logsumexp(1).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("kind", LOCAL)
def test_each_gives_maps_to_a_detector_and_levels_to_timm(kind):
    spec = VARIANTS["elsa_swin_nano"]
    arguments = {
        name: getattr(spec, name) for name in ("embed_dim", "depths", "num_heads", "group_width", "window_size")
    }
    maps = ELSASwinMaps(attention=(kind,) * 3 + ("window",), **arguments)(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in maps] == [(32, 16, 24), (64, 8, 12), (128, 4, 6), (256, 2, 3)]
    levels = swin(kind, features_only=True)(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("kind", [name for name in LOCAL if name not in ("elsa", "hadamard")])
def test_each_is_exported_as_plain_operators(kind):
    model = swin(kind, depths=(1, 1, 1, 1), elsa_kernel=3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), portable():
        program = torch.export.export(model, (images,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if name.startswith("elsa")]
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)


def test_parameters_and_operations_are_those_of_the_formulas():
    """Of the first block's operator: C = 32, one head, K = 7, a map of 14 × 14."""
    dim, taps, positions = 32, 49, 14 * 14
    linear = dim * dim + dim
    for kind, parameters, operations in (
        ("neighbourhood", 4 * linear + taps, 4 * dim * dim + 2 * dim * taps),
        ("parametric", 2 * linear + dim * taps + taps, 2 * dim * dim + dim * taps + dim * taps),
        ("depthwise", 2 * linear + dim * taps + dim, 2 * dim * dim + dim * taps),
    ):
        operator = swin(kind).layers[0].blocks[0].attn
        assert sum(p.numel() for p in operator.parameters()) == parameters, kind
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            operator(torch.randn(1, 14, 14, dim))
        assert counter.get_total_flops() == 2 * positions * operations, kind


def test_hadamard_is_elsa_without_its_ghost_head():
    operator = swin("hadamard").layers[0].blocks[0].attn
    assert operator.ghost_head is None
    assert swin("hadamard", gamma=1).layers[0].blocks[0].attn.ghost_head is not None
    assert swin("elsa").layers[0].blocks[0].attn.ghost_head.shape == (1, 32, 7, 7)


def test_window_attention_without_position_bias():
    model = ELSASwin(
        attention=("window",) * 4, depths=(2, 1, 1, 1), embed_dim=16, num_heads=(1, 2, 4, 8), position_bias=False
    )
    assert not [name for name in model.state_dict() if "rb" in name or "relative_id" in name]
    x = torch.randn(1, 3, 64, 64)
    assert model(x).isfinite().all()
    model.set_input_size(window_size=4)
    assert model.layers[0].blocks[0].window_size == 4


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(generation="hadmard"), "generation must be one of dot, parametric, got 'hadmard'"),
        (dict(border="wrap"), "border must be one of zero, inside, got 'wrap'"),
        (dict(border="inside", gamma=1), "border 'inside' is for dot products without a ghost head"),
        (dict(kernel_size=4), "kernel_size must be odd and positive, got 4"),
        (dict(num_heads=3), "num_heads must divide the channels: 8 channels, 3 heads"),
        (dict(lam=0.5), "must be a non-negative integer, got 0.5"),
    ],
)
def test_what_cannot_be_is_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        NeighbourhoodAttention(**{"dim": 8, "num_heads": 2, **arguments})


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="position_bias has no effect"):
        ELSASwin(attention=("elsa",) * 4, position_bias=False)
    with pytest.raises(ValueError, match="lam and gamma have no effect"):
        ELSASwin(attention=("depthwise",) * 4, gamma=1)
    with pytest.raises(ValueError, match="needs maps of 7 positions a side, got one of 5"):
        NeighbourhoodAttention(8, 2, border="inside")(torch.randn(1, 5, 9, 8))
    assert NeighbourhoodAttention(8, 2, border="inside")(torch.randn(1, 7, 9, 8)).isfinite().all()
