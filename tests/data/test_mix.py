"""Mixup and cutmix: probabilities, pairing, and off."""

from __future__ import annotations

import pytest
import torch

from elsa.data import DataError, build_mix


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_become_probabilities(make_config, tmp_path, mixup, cutmix, smoothing):
    mix = build_mix(
        make_config(tmp_path, f"AUG.MIXUP={mixup}", f"AUG.CUTMIX={cutmix}", f"AUG.SMOOTHING={smoothing}"), 4
    )
    images, targets = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    mixed, probabilities = mix(images.clone(), targets)
    assert mixed.shape == images.shape
    assert not torch.equal(mixed, images)
    assert probabilities.shape == (4, 2)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    assert probabilities.min() >= smoothing / 2 - 1e-6


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_an_unmixed_batch_still_gets_smoothed_probabilities(make_config, tmp_path, probability):
    mix = build_mix(make_config(tmp_path, "AUG.MIXUP=0.8", "AUG.SMOOTHING=0.2"), 4)
    mix.mix_prob = probability
    images = torch.randn(4, 3, 8, 8)
    mixed, probabilities = mix(images.clone(), torch.tensor([0, 1, 1, 0]))
    assert torch.equal(mixed, images) == (probability == 0)
    if probability == 0:
        expected = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]])
        torch.testing.assert_close(probabilities, expected)


def test_mix_probability_of_the_configuration_is_used(make_config, tmp_path):
    mix = build_mix(make_config(tmp_path, "AUG.MIXUP=0.8", "AUG.CUTMIX=1", "AUG.MIX_PROB=0.3", "AUG.MIX_SWITCH=0.7"), 4)
    assert (mix.mix_prob, mix.switch_prob, mix.mixup_alpha, mix.cutmix_alpha) == (0.3, 0.7, 0.8, 1.0)


@pytest.mark.parametrize(
    "off", [["AUG.MIXUP=0", "AUG.CUTMIX=0"], ["AUG.MIXUP=0.8", "AUG.CUTMIX=1", "AUG.MIX_PROB=0"]], ids=str
)
@pytest.mark.parametrize("batch", [3, 4])
def test_off(make_config, tmp_path, off, batch):
    assert build_mix(make_config(tmp_path, *off), batch) is None


@pytest.mark.parametrize("batch", [1, 5])
def test_an_odd_batch_cannot_be_paired(make_config, tmp_path, batch):
    with pytest.raises(DataError, match=f"each process holds {batch}"):
        build_mix(make_config(tmp_path, "AUG.MIXUP=0.8"), batch)
