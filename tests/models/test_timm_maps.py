"""The maps of timm models: features_only, forward_intermediates, feature_info, for every variant."""

from __future__ import annotations

import pytest
import timm
import torch

NANO = "elsa_swin_nano"
VOLO = "elsa_volo_nano"
NANOS = [NANO, VOLO]
CHEAP = [*NANOS, "elsa_swin_tiny"]
STRIDES = {NANO: [4, 8, 16, 32], "elsa_swin_tiny": [4, 8, 16, 32], VOLO: [8, 16, 16, 16]}


def build(name=NANO, **changes):
    return timm.create_model(name, **changes)


def image(batch=2, channels=3, height=64, width=64):
    return torch.randn(batch, channels, height, width)


@pytest.mark.parametrize("name", CHEAP)
def test_features_only(name):
    model = build(name, features_only=True).eval()
    x = image(1, height=72, width=100)
    with torch.no_grad():
        maps = model(x)
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert reductions == STRIDES[name]
    assert [level.shape[1] for level in maps] == channels
    for level, reduction in zip(maps, reductions, strict=True):
        assert level.shape == (1, level.shape[1], -(-72 // reduction), -(-100 // reduction))
        assert level.isfinite().all()


@pytest.mark.parametrize(
    ("indices", "stages"),
    [((0, 1, 2, 3), [0, 1, 2, 3]), ((1, 3), [1, 3]), ((0,), [0]), ((-1,), [3]), ((-3, -2), [1, 2]), (2, [2, 3])],
    ids=str,
)
@pytest.mark.parametrize("name", NANOS)
def test_out_indices_choose_stages_and_drop_what_is_not_needed(name, indices, stages):
    whole = build(name, features_only=True).eval()
    chosen = build(name, features_only=True, out_indices=indices).eval()
    assert chosen.feature_info.channels() == [whole.feature_info.channels()[stage] for stage in stages]
    assert chosen.feature_info.reduction() == [whole.feature_info.reduction()[stage] for stage in stages]
    missing, _ = chosen.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    x = image()
    every, some = whole(x), chosen(x)
    assert len(some) == len(stages)
    for level, stage in zip(some, stages, strict=True):
        torch.testing.assert_close(level, every[stage])
    sum(level.square().mean() for level in some).backward()
    unused = [key for key, parameter in chosen.named_parameters() if parameter.grad is None]
    assert not unused


@pytest.mark.parametrize("name", NANOS)
@pytest.mark.parametrize("indices", [(4,), (-5,), (), 0, 5], ids=str)
def test_out_indices_that_are_not_there_are_refused(name, indices):
    with pytest.raises(ValueError, match="stages"):
        build(name, features_only=True, out_indices=indices)


@pytest.mark.parametrize("name", CHEAP)
def test_forward_intermediates_is_forward_with_its_maps(name):
    model = build(name).eval()
    x = image(height=96, width=64)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        assert len(maps) == len(model.feature_info)
        for level, info in zip(maps, model.feature_info, strict=True):
            assert level.shape == (2, info["num_chs"], 96 // info["reduction"], 64 // info["reduction"])

        last = model.forward_intermediates(x, indices=1, intermediates_only=True)
        assert isinstance(last, list)
        assert torch.equal(last[0], maps[-1])
        normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
        if name == VOLO:  # whose class attention leaves the patch tokens as they are
            torch.testing.assert_close(normed[-1].flatten(2).transpose(1, 2), final[:, 1:])
        else:
            torch.testing.assert_close(normed[-1], final.permute(0, 3, 1, 2))
        assert torch.equal(normed[0], maps[0])
        channels_last = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
        for one, other in zip(channels_last, maps, strict=True):
            assert torch.equal(one.permute(0, 3, 1, 2), other)


@pytest.mark.parametrize(
    ("indices", "stages"),
    [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-4, -1], [0, 3]), ((1,), [1])],
    ids=str,
)
@pytest.mark.parametrize("name", NANOS)
def test_intermediates_by_index(name, indices, stages):
    model = build(name).eval()
    x = image()
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        chosen = model.forward_intermediates(x, indices=indices, intermediates_only=True)
    assert len(chosen) == len(stages)
    assert all(torch.equal(level, maps[stage]) for level, stage in zip(chosen, stages, strict=True))


@pytest.mark.parametrize("name", NANOS)
def test_stop_early_runs_no_later_stage(name):
    model = build(name).eval()
    x = image()
    ran = []
    for index, info in enumerate(model.feature_info):
        model.get_submodule(info["module"]).register_forward_hook(lambda *_, index=index: ran.append(index))
    maps = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert ran == [0, 1, 2, 3]
    ran.clear()
    early = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert ran == [0, 1]
    assert all(torch.equal(one, other) for one, other in zip(early, maps, strict=True))


@pytest.mark.parametrize("name", NANOS)
@pytest.mark.parametrize("arguments", [dict(indices=[4]), dict(indices=[-5]), dict(indices=[]), dict(output_fmt="NLC")])
def test_intermediates_refuse_what_they_cannot_give(name, arguments):
    with pytest.raises(ValueError, match=r"indices|output_fmt"):
        build(name).forward_intermediates(image(), **arguments)


@pytest.mark.parametrize("indices", [1, [3], [0, 1], [-3]], ids=str)
@pytest.mark.parametrize("name", NANOS)
def test_pruning_keeps_the_maps_and_drops_the_rest(name, indices):
    model = build(name).eval()
    x = image()
    with torch.no_grad():
        before = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        kept = model.prune_intermediate_layers(indices)
        after = model.forward_intermediates(x, indices=kept, intermediates_only=True)
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        stages = [info["module"] in dict(model.named_modules()) for info in model.feature_info]
        assert stages == [stage <= max(kept) for stage in range(4)]
        assert isinstance(model.get_classifier(), torch.nn.Identity)
        final = model(x)
    assert final.shape[-1] == model.num_features == before[-1].shape[1]


@pytest.mark.parametrize("name", NANOS)
def test_feature_info_names_modules_that_exist(name):
    model = build(name)
    for info in model.feature_info:
        model.get_submodule(info["module"])
