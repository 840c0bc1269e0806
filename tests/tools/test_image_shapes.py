"""Inputs that are no squares, from the recipe to predictions."""

from __future__ import annotations

import json

import pytest
import torch
from guarantees import content

from elsa.engine import load_config
from elsa.tools.tasks.classifier_plan import memory_of
from elsa.tools.tasks.complexity import count, line
from elsa.tools.tasks.networks import build_model, token_grid

WIDE = "DATA.IMG_SIZE=[32, 64]"


def test_a_wide_input_is_trained_resumed_evaluated_and_predicted_with(config, images, tool, tmp_path):
    run, wide = tmp_path / "run", ["--set", WIDE, "TRAIN.EPOCHS=2"]
    outcome = tool("train", config, "--output", run, *wide)
    assert outcome.code == 0, outcome.err
    assert content(run / "last.pt")["config"]["DATA.IMG_SIZE"] == [32, 64]
    assert tool("train", run / "config.yaml", "--output", run, "--resume", "auto").code == 0
    outcome = tool("evaluate", config, run / "last.pt", "--output", tmp_path / "eval", *wide)
    assert outcome.code == 0, outcome.err
    last = json.loads((run / "summary.json").read_text())["last"]
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert results["metrics"] == {name: last[name] for name in ("top1", "top5", "loss")}
    picture = images / "val/class1/0.png"
    outcome = tool("predict", config, run / "last.pt", picture, "--output", tmp_path / "predicted", *wide)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("recipe", ["digits_elsa_swin_nano", "digits_elsa_volo_nano"])
def test_networks_and_what_is_told_of_them(root, recipe):
    """Operations and activations grow with the area, whichever side is the longer."""
    path = root / f"configs/classification/{recipe}.yaml"
    found = {}
    for size in ([64, 64], [64, 128], [128, 64]):
        config = load_config(path, [f"DATA.IMG_SIZE={size}"])
        model = build_model(config)
        assert model(torch.zeros(2, config.MODEL.IN_CHANS, *size)).shape == (2, 10)
        image = memory_of(config, model, "cpu", None, 1, "ddp").image
        row = count(path, [f"DATA.IMG_SIZE={size}"])
        found[tuple(size)] = (row["multiply_adds"], image)
        assert f"{'×'.join(map(str, size))} " in line(row)
    for square, *others in zip(*found.values(), strict=True):
        assert others[0] == others[1] == pytest.approx(2 * square, rel=0.1)


def test_patch_tokens_have_rows_and_columns(root):
    config = load_config(root / "configs/classification/digits_elsa_volo_nano.yaml", [WIDE])
    assert token_grid(config, build_model(config)) == (2, 4)
