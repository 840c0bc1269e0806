"""Evaluation and prediction by the recipe that a checkpoint holds, for every task."""

from __future__ import annotations

import json

import pytest
import torch

PREDICTED = {
    "classification": lambda said: [entry["top"][0] for entry in said],
    "detection": lambda said: said["annotations"],
    "segmentation": lambda said: said["images"],
}


def results(folder):
    said = json.loads((folder / "results.json").read_text())
    return {name: said[name] for name in ("metrics", "count", "model", "config")}


@pytest.fixture
def checkpoint(whole, tool):
    return whole / "last.pt"


def test_evaluate_needs_no_config_and_no_set(task, checkpoint, tool, tmp_path):
    with_config = tool("evaluate", task.recipe, checkpoint, "--output", tmp_path / "a", *task.single, *task.set(save=2))
    assert with_config.code == 0, with_config.err
    without = tool("evaluate", checkpoint, "--output", tmp_path / "b", *task.single)
    assert without.code == 0, without.err
    before, after = results(tmp_path / "a"), results(tmp_path / "b")
    if task.task != "classification":  # nothing is drawn for a recipe of a file
        assert before["config"].pop("embedded") == after["config"].pop("embedded")
    assert before == after
    weights = checkpoint.with_suffix(".safetensors")  # hold the recipe, too
    outcome = tool("evaluate", weights, "--output", tmp_path / "c", *task.single)
    assert outcome.code == 0, outcome.err
    assert results(tmp_path / "c")["metrics"] == after["metrics"]


def test_predict_needs_no_config(task, checkpoint, tool, tmp_path):
    images = next(path.parent for path in sorted(task.data.rglob("val*/**/*.*")) if path.suffix in (".png", ".jpg"))
    images = task.data / "images/validation" if task.task == "segmentation" else images
    for name, arguments in (("a", [task.recipe, checkpoint]), ("b", [checkpoint])):
        outcome = tool("predict", *arguments, images, "--output", tmp_path / name)
        assert outcome.code == 0, outcome.err
    said = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("a", "b")]
    assert said[0] == said[1]
    assert PREDICTED[task.task](said[0]) is not None
    first, second = sorted(path for path in images.rglob("*.*") if path.suffix in (".png", ".jpg"))[:2]
    outcome = tool("predict", checkpoint, first, second, first, "--output", tmp_path / "c")  # as a shell writes *.jpg
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "c" / "predictions.json").read_text())
    paths = [row.get("image", row.get("file_name")) for row in (found if isinstance(found, list) else found["images"])]
    assert paths == [str(first), str(second)]


def test_a_run_s_folder_is_a_checkpoint(task, checkpoint, tool, tmp_path):
    outcome = tool("evaluate", checkpoint.parent, "--output", tmp_path / "a", *task.single)
    assert outcome.code == 0, outcome.err


def test_a_given_config_and_a_given_value_count(task, checkpoint, refused, tool, tmp_path):
    key = "MODEL.NUM_CLASSES" if task.task == "classification" else "model.backbone.variant"
    value = 7 if task.task == "classification" else "elsa_swin_nanoo"
    refused(tool("evaluate", checkpoint, "--output", tmp_path / "a", "--set", f"{key}={value}"), str(value))
    refused(tool("evaluate", checkpoint, "--output", tmp_path / "a", "--set", "NO.SUCH=1"), "NO")
    outcome = tool("evaluate", task.recipe, checkpoint, "--set", f"{key}={value}", "--output", tmp_path / "a")
    refused(outcome, str(value))
    assert not (tmp_path / "a").exists()


def test_print_config(task, checkpoint, tool):
    outcome = tool("evaluate", checkpoint, "--print-config")
    assert outcome.code == 0
    assert ("elsa_swin_nano" in outcome.out) == (outcome.err == "")


def test_what_holds_no_recipe(task, checkpoint, refused, tool, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    refused(tool("evaluate", tmp_path / "weights.pth"), "weights.pth holds no recipe; name CONFIG before it")
    refused(tool("evaluate", task.recipe), f"CHECKPOINT is missing: {task.recipe} is a recipe")
    refused(tool("predict", task.recipe, tmp_path), f"CHECKPOINT is missing: {task.recipe} is a recipe")
    refused(tool("evaluate", "elsa_swin_tiny"), "CHECKPOINT is missing")
    refused(tool("evaluate", checkpoint, task.recipe), "last.pt is a checkpoint, where CONFIG is meant")
    refused(tool("train", checkpoint, "--output", tmp_path / "a"), "last.pt is a checkpoint, where CONFIG is meant")


def test_a_stored_recipe_of_another_task(task, checkpoint, refused, tool, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    for name in ("classification", "detection", "segmentation", "x", 3, None):
        if name != task.task and (task.task, name) != ("classification", None):
            torch.save({**content, "task": name}, tmp_path / "odd.pt")
            outcome = tool("evaluate", tmp_path / "odd.pt", "--output", tmp_path / "a")
            assert (outcome.code, outcome.err.count("\n"), outcome.err[:7]) == (2, 1, "error: "), outcome.err
            assert "odd.pt" in outcome.err
