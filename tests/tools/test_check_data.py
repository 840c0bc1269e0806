"""tools/check_data.py: what it prints, writes, and returns to the shell."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from elsa.data import write_digits_ade, write_digits_coco
from elsa.data.checks import report as report_module


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


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
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
