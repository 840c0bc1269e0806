"""The ELSA-VOLO recipes and their baselines: what is published, and what tools/complexity.py counts."""

from __future__ import annotations

import json

import pytest

from elsa.engine import flatten, load_config

RECIPES = "configs/classification"
FINE_TUNED = {"d1": [384], "d2": [384], "d3": [448], "d4": [448], "d5": [448, 512]}
NAMES = [name for d, sizes in FINE_TUNED.items() for name in (d, *(f"{d}_{size}" for size in sizes))]


@pytest.mark.parametrize(
    ("name", "lr", "drop_path"),
    [("d1", 1.6e-3, 0.1), ("d2", 1e-3, 0.2), ("d3", 1e-3, 0.5), ("d4", 1e-3, 0.5), ("d5", 1e-3, 0.75)],
)
def test_the_recipe_at_224(root, name, lr, drop_path):
    config = load_config(root / RECIPES / f"elsa_volo_{name}.yaml")
    train, tokens = config.TRAIN, config.TOKENS
    assert (config.DATA.IMG_SIZE, config.DATA.BATCH, config.EVAL.CROP) == (224, 1024, 0.96)
    assert (lr, drop_path, 0.05, None) == (train.LR, config.MODEL.DROP_PATH, train.WEIGHT_DECAY, train.CLIP_GRAD)
    assert (train.EPOCHS, train.COOLDOWN_EPOCHS, train.WARMUP_EPOCHS, train.MIN_LR) == (300, 10, 20, 1e-5)
    assert (config.AUG.MIXUP, config.AUG.CUTMIX, config.AUG.SMOOTHING, config.AUG.ERASE) == (0, 0, 0.1, 0.25)
    assert (tokens.ENABLED, tokens.GROUND_TRUTH, tokens.CLASS_WEIGHT, tokens.PATCH_WEIGHT, tokens.MIX) == (
        True, False, 1.0, 0.5, 1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "batch", "crop"),
    [("d1", 384, 512, 0.96), ("d2", 384, 384, 0.96), ("d3", 448, 240, 0.96), ("d4", 448, 240, 1.15),
     ("d5", 448, 240, 1.15), ("d5", 512, 240, 1.15)],
)  # fmt: skip
def test_fine_tuning_continues_the_recipe_at_224(root, name, size, batch, crop):
    start = flatten(load_config(root / RECIPES / f"elsa_volo_{name}.yaml"))
    config = flatten(load_config(root / RECIPES / f"elsa_volo_{name}_{size}.yaml"))
    changed = {key: value for key, value in config.items() if value != start[key]}
    crop_changed = {} if crop == 0.96 else {"EVAL.CROP": crop}
    assert changed == {
        "MODEL.PRETRAINED": f"runs/elsa_volo_{name}/best.safetensors",
        "DATA.IMG_SIZE": size,
        "DATA.BATCH": batch,
        "TOKENS.GROUND_TRUTH": True,
        "TRAIN.EPOCHS": 30,
        "TRAIN.WARMUP_EPOCHS": 5,
        "TRAIN.LR": 8e-6,
        "TRAIN.MIN_LR": 4e-6,
        "TRAIN.WEIGHT_DECAY": 1e-8,
        **crop_changed,
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_baseline_differs_in_the_attention_alone(root, name):
    ours, baseline = (flatten(load_config(root / RECIPES / f"{kind}_{name}.yaml")) for kind in ("elsa_volo", "volo"))
    assert {key for key in ours if ours[key] != baseline[key]} <= {"MODEL.KWARGS", "MODEL.PRETRAINED"}
    assert baseline["MODEL.KWARGS"] == {"attention": "outlook"}
    assert baseline["MODEL.PRETRAINED"] == ours["MODEL.PRETRAINED"].replace("elsa_volo", "volo")


def test_parameters_and_multiply_adds_stand_beside_the_published_ones(tool, root, tmp_path):
    names = ["d1", "d1_384", "d4_448", "d5_512"]
    recipes = [root / RECIPES / f"{kind}_{name}.yaml" for kind in ("volo", "elsa_volo") for name in names]
    outcome = tool("complexity", *recipes, "--output", tmp_path / "table.json")
    assert outcome.code == 0, outcome.err
    rows = {row["configuration"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert len(rows) == len(recipes) == len(outcome.out.splitlines()) - 1
    for name in names:
        row, ours = rows[f"volo_{name}"], rows[f"elsa_volo_{name}"]
        assert row["parameters"] / 1e6 == pytest.approx(row["published"][0], rel=0.02)
        assert row["multiply_adds"] / 1e9 == pytest.approx(row["published"][1], rel=0.035)
        assert 1.0 < ours["multiply_adds"] / row["multiply_adds"] < 1.05  # the operator is counted


def test_complexity_of_a_configuration_that_cannot_be_built(tool, refused, root):
    path = root / RECIPES / "elsa_volo_d1.yaml"
    refused(tool("complexity", path, "--set", "DATA.IMG_SIZE=100"), "multiple of the patch")
    refused(tool("complexity", root / RECIPES / "elsa_volo_d6.yaml"), "does not exist; did you mean")
