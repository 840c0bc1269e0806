"""The weights that come with the package: what their cards say is what the evaluation gives; ``--model NAME``."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from elsa.core import ConfigError
from elsa.tools.tasks import zoo
from elsa.tools.tasks.command import shipped_recipes, shipped_weights
from elsa.tools.tasks.conversion import _as_half

WEIGHTS = shipped_weights()
FIRST = 20  # scenes that the cards have figures of, for a check in seconds
RECIPES = {
    "digits-classifier": "digits_elsa_swin_nano",
    "digits-detector": "mask_rcnn_elsa_swin_pico_digits",
    "digits-segmentor": "upernet_elsa_swin_pico_digits",
}


def card(name: str) -> str:
    return WEIGHTS[name].with_suffix(".md").read_text()


def figures(name: str, column: int) -> dict[str, float]:
    """Of the card's table: {what: number} of the whole split (1), or of its first scenes (2)."""
    rows = [line.strip("| ").split(" | ") for line in card(name).splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): float(row[column]) for row in rows}


def test_weights_are_few_and_small():
    """They are part of every installation."""
    assert WEIGHTS.keys() == RECIPES.keys()
    assert sum(path.stat().st_size for path in WEIGHTS.values()) < 5e6


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_tell_their_recipe_and_their_card_tells_the_rest(name):
    with safe_open(WEIGHTS[name], "pt") as file:
        about = file.metadata()
        kinds = {str(file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118
    assert {"config", "classes", "arch", "crc32"} <= about.keys()
    assert "F32" not in kinds and "F16" in kinds
    assert f"`{RECIPES[name]}`" in card(name) and RECIPES[name] in shipped_recipes()
    for heading in ("## Data", "## Training", "## Figures", "## Limits", "## Licence"):
        assert heading in card(name)
    size = re.search(r"([\d.]+) MB", card(name))
    assert size and float(size[1]) == pytest.approx(WEIGHTS[name].stat().st_size / 1e6, abs=0.05)
    row = zoo.read_zoo()[RECIPES[name]]
    assert row["measured"]["model"] == name
    assert set(row["measured"].values()) - {name} <= set(figures(name, 1).values())


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_as_their_card_says(tool, tmp_path, name):
    (check_classifier if name == "digits-classifier" else check_dense)(tool, tmp_path, name)


def check_classifier(tool, tmp_path, name):
    keys = ("--set", f"DATA.ROOT={tmp_path / 'digits'}", "--output", tmp_path / "out")
    outcome = tool("evaluate", "--model", name, *keys)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "out/results.json").read_text())
    told = figures(name, 1)
    assert found["count"] == 360
    assert found["metrics"]["top1"] == pytest.approx(told["top1"], abs=0.3)  # one image, on another processor
    assert found["metrics"]["loss"] == pytest.approx(told["loss"], abs=2e-3)


def check_dense(tool, tmp_path, name):
    pytest.importorskip("mmdet", reason="mmdet is not installed (scripts/setup.sh --dense)")
    root = f"{tmp_path / 'scenes'}/"
    keys = ("--set", f"data_root={root}", f"embedded.root={root}", "embedded.train=1", f"embedded.val={FIRST}")
    scales = ("--scales", "single") if name == "digits-segmentor" else ()
    outcome = tool("evaluate", "--model", name, *scales, *keys, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["count"] == FIRST
    told = {key: number for key, number in figures(name, 2).items() if key in found["metrics"]}
    assert len(told) >= 2
    for key, number in told.items():
        scale = 100 if name == "digits-detector" else 1
        assert found["metrics"][key] * scale == pytest.approx(number, abs=0.6), key


@pytest.mark.parametrize("name", WEIGHTS)
def test_predict_by_name(tool, root, tmp_path, name):
    image = "docs/digit.png" if name == "digits-classifier" else "docs/digits_scene.jpg"
    outcome = tool("predict", "--model", name, root / image, "--output", tmp_path)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "predictions.json").read_text())
    if name == "digits-classifier":
        assert found[0]["top"][0]["class"] == "4" and found[0]["top"][0]["confidence"] > 0.5
    elif name == "digits-detector":
        names = {one["id"]: one["name"] for one in found["categories"]}
        sure = {names[one["category_id"]] for one in found["annotations"] if one["score"] > 0.9}
        assert {"3", "6", "7", "8"} <= sure <= {"3", "4", "6", "7", "8"}
    else:
        labels = np.asarray(Image.open(tmp_path / found["images"][0]["labels"]))
        assert labels[195, 85] == 7 and labels[58, 135] == 9  # where a 6 and an 8 are; 0 is unlabelled


def test_what_float16_cannot_hold_is_named():
    small = torch.tensor([65504.0, -1e-3])
    assert torch.equal(_as_half("x", small), small.half())
    with pytest.raises(ConfigError, match=r"--half: norm.weight reaches 7e\+04, and float16 65504"):
        _as_half("norm.weight", torch.tensor([7e4]))


def test_mistakes(tool, refused, tmp_path):
    refused(tool("evaluate", "--model", "digits-clasifier"), "did you mean digits-classifier?")
    refused(tool("evaluate", "--model=resnet"), "no such weights come with this package; there are digits-classifier")
    both = tool("evaluate", "--model", "digits-classifier", tmp_path / "best.pt")
    refused(both, "there is no place for", "best.pt")
    help_text = tool("predict", "--help").out
    assert all(name in help_text for name in WEIGHTS)
