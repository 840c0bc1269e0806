"""Training on unequal classes with the tools, as a user does."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
from guarantees import assert_same_run


@pytest.fixture
def unequal(images, tmp_path, config):
    """The small configuration on classes of 12, 12, 12 and 3 images: 3 epochs of 4 steps."""
    root = tmp_path / "unequal"
    shutil.copytree(images, root)
    for number in range(3, 12):
        (root / "train/class3" / f"{number}.png").unlink()
    config.write_text(config.read_text().replace(str(images), str(root)))
    return config


@pytest.mark.parametrize("mixed", [True, False])
def test_weights_of_the_classes_reach_the_loss(unequal, tool, tmp_path, mixed):
    """With all weights 3 the loss, and the norm of its gradient, are three times those without."""
    first = {}
    for name, weights in (("none", "none"), ("threes", "[3, 3, 3, 3]"), ("balanced", "balanced")):
        sets = [
            f"DATA.CLASS_WEIGHTS={weights}",
            "LOG.EVERY=1",
            "TRAIN.EPOCHS=2",
            *([] if mixed else ["AUG.MIX_PROB=0"]),
        ]
        outcome = tool("train", unequal, "--output", tmp_path / name, "--set", *sets)
        assert outcome.code == 0, outcome.err
        first[name] = json.loads((tmp_path / name / "log.jsonl").open().readline())
    for number in ("loss", "grad_norm"):
        assert first["threes"][number] == pytest.approx(3 * first["none"][number], rel=1e-4)
        assert first["balanced"][number] != pytest.approx(first["none"][number], rel=1e-3)
    assert "class weights from 0.812 to 3.25" in outcome.err


def test_a_balanced_run_goes_on_in_mid_epoch_bit_for_bit(unequal, tool, tmp_path, signal_at):
    arguments = ("train", unequal, "--resume", "auto", "--set", "DATA.SAMPLER=balanced")
    assert tool(*arguments, "--output", tmp_path / "whole").code == 0
    signal_at(5, signal.SIGTERM)
    outcome = tool(*arguments, "--output", tmp_path / "run")
    assert "stopped after step 6" in outcome.err
    signal_at()
    assert tool(*arguments, "--output", tmp_path / "run").code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
