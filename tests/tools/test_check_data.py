"""tools/check_data.py: what it prints, writes, and returns to the shell."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from elsa.data import write_digits_ade, write_digits_coco
from elsa.data.checks import report as report_module

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_digits_coco(tmp_path_factory.mktemp("coco") / "coco", 8, 2)


@pytest.fixture
def damaged(whole, tmp_path):
    root = shutil.copytree(whole, tmp_path / "damaged")
    for path in sorted((root / "train2017").iterdir())[:7]:
        path.unlink()
    return root


def test_a_whole_set_ends_with_ok(tool, whole, tmp_path):
    outcome = tool("check_data", "coco", whole, "--json", tmp_path / "new" / "report.json")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[-1] == "OK"
    assert "  train images: 8" in lines
    assert json.loads((tmp_path / "new" / "report.json").read_text())["ok"] is True


def test_damage_ends_with_a_list(tool, damaged, tmp_path):
    outcome = tool("check_data", "coco", damaged, "--json", tmp_path / "report.json", "--workers", 2)
    assert outcome.code == 1
    assert "NOT OK: 7 findings\nimage missing: 7\n" in outcome.out
    assert outcome.out.count(".jpg") == 5
    assert outcome.out.splitlines()[-1] == "  … and 2 more"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is False
    assert len(report["findings"]) == 7
    assert set(report["findings"][0]) == {"kind", "place", "detail"}
    assert tool("check_data", "coco", damaged, "--show", 9).out.count(".jpg") == 7
    assert tool("check_data", "coco", damaged, "--splits", "val").code == 0


def test_the_other_data_sets(tool, images, tmp_path):
    assert tool("check_data", "imagenet", images, "--classes", 4, "--fast").code == 0
    assert tool("check_data", "imagenet", images, "--classes", 5).code == 1
    ade = write_digits_ade(tmp_path / "ade", 10, 4)
    assert tool("check_data", "ade20k", ade, "--classes", 11).code == 0
    assert tool("check_data", "ade20k", ade, "--classes", 10).code == 1


def test_the_data_of_a_recipe_of_classification(tool, config, images, tmp_path):
    """What the recipe says counts: its number of classes, its lists."""
    assert tool("check_data", config).code == 0
    outcome = tool("check_data", config, "--set", "MODEL.NUM_CLASSES=5")
    assert outcome.code == 1
    assert "number of classes: 2" in outcome.out
    rows = [f"{path.relative_to(images)},{path.parent.name}" for path in sorted(images.glob("train/*/*.png"))]
    for name, some in (("mine", rows[::2]), ("others", rows[1::2])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["image,label", *some]))
    lists = [f"DATA.{split}_SPLIT={tmp_path}/{name}.csv" for split, name in (("TRAIN", "mine"), ("VAL", "others"))]
    outcome = tool("check_data", config, "--set", "DATA.DATASET=list", *lists)
    assert outcome.code == 0, outcome.out
    assert "train images: 24\n" in outcome.out and "val classes: 4\n" in outcome.out
    (tmp_path / "others.csv").write_text("\n".join(["image,label", *rows[:1], *rows[:1], "train/class0/no.png,class0"]))
    outcome = tool("check_data", config, "--set", "DATA.DATASET=list", *lists)
    assert outcome.code == 1
    for finding in ("image missing: 1", "image listed more than once: 1", "image in both lists: 1"):
        assert finding in outcome.out


def test_the_data_of_a_detector(tool, detector, coco, tmp_path):
    assert tool("check_data", detector).code == 0
    copy = shutil.copytree(coco, tmp_path / "boxes")
    for file in (copy / "annotations").iterdir():
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            del entry["segmentation"]
        file.write_text(json.dumps(content))
    outcome = tool("check_data", "coco", copy, "--classes", 10)
    assert outcome.code == 1 and "mask" in outcome.out
    assert tool("check_data", "coco", copy, "--classes", 10, "--boxes").code == 0
    detector.write_text(detector.read_text().replace(f"{coco}/", f"{copy}/"))
    assert tool("check_data", detector).code == 1
    detector.write_text(detector.read_text().replace("mask_rcnn_elsa_swin_nano_digits", "faster_rcnn_elsa_swin_nano"))
    names = "\n_own = dict(metainfo=dict(classes={0}))\ntrain_dataloader['dataset']['dataset'].update(_own)\n"
    names += "val_dataloader['dataset'].update(_own)\n"
    text = detector.read_text()
    detector.write_text(text + names.format(DIGITS))
    outcome = tool("check_data", detector)
    assert outcome.code == 0, outcome.out
    detector.write_text(text + names.format(("0", "11")))
    outcome = tool("check_data", detector)
    assert outcome.code == 1
    assert "class that the file has not: 2" in outcome.out and "lacks 1 of 2 classes, '11'" in outcome.out


def test_the_data_of_a_segmentor(tool, segmentor):
    outcome = tool("check_data", segmentor)
    assert outcome.code == 0, outcome.out
    segmentor.write_text(segmentor.read_text() + "val_dataloader['dataset']['reduce_zero_label'] = False\n")
    outcome = tool("check_data", segmentor)
    assert outcome.code == 1
    assert "label out of range" in outcome.out


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["ROOT"], "ROOT has no effect"),
        (["--classes", "4"], "--classes has no effect: the recipe"),
        (["--set", "DATA.DATASET=torch/x"], "DATA.DATASET torch/x is not checked"),
        (["--set", "DATA.ROOT=/nowhere"], "/nowhere does not exist"),
    ],
)
def test_a_recipe_says_what_its_data_are(tool, refused, config, options, part):
    refused(tool("check_data", config, *options), part)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["imagenet", "ROOT", "--boxes"], "--boxes is of objects"),
        (["coco", "ROOT", "--set", "a=1"], "--set is of a recipe"),
        (["coco", "ROOT/nowhere"], "nowhere does not exist"),
        (["coco", "ROOT/file"], "file is not a folder"),
        (["cocoa", "ROOT"], "invalid choice: 'cocoa'"),
        (["coco"], "ROOT"),
        (["coco", "ROOT", "--classes", "0"], "'0' is not a whole number of at least 1"),
        (["coco", "ROOT", "--workers", "-1"], "--workers"),
        (["coco", "ROOT", "--splits", "test"], "'test'"),
        (["coco", "ROOT", "--json", "ROOT/file/report.json"], "file is a file"),
        (["coco", "ROOT", "--json", "ROOT"], "is a folder"),
    ],
)
def test_a_mistake_is_told_in_one_line(tool, tmp_path, arguments, part):
    (tmp_path / "file").write_text("mine")
    outcome = tool("check_data", *(argument.replace("ROOT", str(tmp_path)) for argument in arguments))
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert "error: " in last
    assert part in last
    assert "Traceback" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_worker_that_is_killed(tool, whole, monkeypatch):
    """As by the system when memory runs out."""
    monkeypatch.setattr(report_module, "look_at", kill_itself)
    outcome = tool("check_data", "coco", whole, "--workers", 2)
    assert outcome.code == 2
    assert "a worker process was killed" in outcome.err


def kill_itself(path, decode):
    os.kill(os.getpid(), signal.SIGKILL)
