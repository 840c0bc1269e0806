"""Class names travel with weights, in whatever file, and are compared by every verb."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from elsa.core.archive import read_archive

NAMES = [f"class{number}" for number in range(4)]


@pytest.fixture
def run(tool, config, tmp_path):
    outcome = tool("train", config, "--output", tmp_path / "run", "--set", "TRAIN.EPOCHS=2")
    assert outcome.code == 0, outcome.err
    return tmp_path / "run"


@pytest.fixture
def renamed(images, tmp_path):
    """The same images, their classes in the opposite order."""
    for split in ("train", "val"):
        for number, name in enumerate(NAMES):
            shutil.copytree(images / split / name, tmp_path / "renamed" / split / f"kind{9 - number}")
    return f"DATA.ROOT={tmp_path / 'renamed'}"


def test_names_travel_and_other_names_are_refused(run, renamed, tool, config, refused, tmp_path):
    files = [run / f"{name}.{kind}" for name in ("last", "best") for kind in ("pt", "safetensors")]
    assert [read_archive(path)["classes"] for path in files] == [NAMES] * 4
    for path in files[:2]:
        outcome = tool("evaluate", config, path, "--output", tmp_path / "out", "--set", renamed)
        refused(outcome, str(path), "class0 in the file, kind6 in the data", ", ".join(NAMES), "DATA.CLASSES")
        outcome = tool("make_token_labels", config, path, "--output", tmp_path / "labels", "--set", renamed)
        refused(outcome, "class0 in the file")
        outcome = tool("train", config, "--output", tmp_path / "two", "--set", renamed, f"MODEL.PRETRAINED={path}")
        refused(outcome, "class0 in the file", "MODEL.PRETRAINED_IGNORE=[head.*]")
    refused(tool("train", config, "--output", run, "--resume", "auto", "--set", "TRAIN.EPOCHS=2", renamed), "class0")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "two").exists()


def test_a_mapping_says_which_folder_is_which(run, renamed, tool, config, images, tmp_path):
    listed = tmp_path / "classes.txt"
    listed.write_text("".join(f"kind{9 - number}\t{name}\n" for number, name in enumerate(NAMES)))
    tops = []
    for name, more in (("same", f"DATA.ROOT={images}"), ("mapped", renamed)):
        stated = [f"DATA.CLASSES={listed}"] if name == "mapped" else []
        outcome = tool("evaluate", config, run, "--output", tmp_path / name, "--set", more, *stated)
        assert outcome.code == 0, outcome.err
        assert f"{run / 'best.pt'}: loaded" in outcome.err
        tops.append(json.loads((tmp_path / name / "results.json").read_text())["metrics"])
    assert tops[0] == tops[1]


def test_weights_in_a_wrapper_and_unreadable_images(run, tool, config, refused, tmp_path):
    state = {f"_orig_mod.module.{n}": t.half() for n, t in read_archive(run / "best.pt")["state_dict"].items()}
    torch.save(state, tmp_path / "w.pth")
    outcome = tool("evaluate", config, tmp_path / "w.pth", "--output", tmp_path / "out")
    assert "cast from float16" in outcome.err
    (tmp_path / "empty.jpg").touch()
    outcome = tool("predict", config, run, tmp_path / "empty.jpg", "--output", tmp_path / "predicted")
    refused(outcome, "none of the 1 images", "empty.jpg")
    assert not (tmp_path / "predicted").exists()


def test_training_takes_the_option_that_it_advises(tool, config, refused, exploit, tmp_path, run):
    content = {"state_dict": read_archive(run / "best.pt")["state_dict"], "x": exploit(tmp_path / "touched")}
    torch.save(content, tmp_path / "evil.pth")
    arguments = ("--output", tmp_path / "two", "--set", "TRAIN.EPOCHS=2", f"MODEL.PRETRAINED={tmp_path / 'evil.pth'}")
    refused(tool("train", config, *arguments), "not executed", "--trust-checkpoint")
    assert not (tmp_path / "touched").exists()
    assert tool("train", config, "--trust-checkpoint", *arguments).code == 0
