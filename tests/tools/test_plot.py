"""Runs of any task compared: the picture, the table, and what is said of runs that are not whole."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from made_runs import write_run
from PIL import Image


@pytest.fixture
def runs(tmp_path) -> Path:
    root = tmp_path / "runs"
    write_run(root / "a", "classification", "top1", [10.0, 30.0, 20.0])
    write_run(root / "b", "classification", "top1", [40.0], finished=False)
    write_run(root / "coco" / "a", "detection", "coco/bbox_mAP", [0.1, 0.2])
    return root


def test_tasks_are_compared_apart_and_the_table_has_the_numbers(tool, runs, tmp_path):
    with (runs / "b" / "log.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "st')
    (runs / "c").mkdir()
    (runs / "c" / "plan.json").write_text("{}")
    outcome = tool("plot", runs, runs / "a", "--output", tmp_path / "out" / "all.png", "--table", tmp_path / "t.json")
    assert outcome.code == 0, outcome.err
    rows = {row["run"]: row for row in json.loads((tmp_path / "t.json").read_text())}
    assert set(rows) == {"runs/a", "runs/b", "runs/c", "coco/a"}
    a = rows["runs/a"]
    assert (a["task"], a["model"], a["state"], a["metric"]) == ("classification", "elsa_swin_tiny", "finished", "top1")
    assert (a["best"], a["last"], a["steps"], a["hours"]) == (30.0, 20.0, 60, pytest.approx(0.6))
    assert (a["images_per_s"], a["data_wait"], a["memory_gb"]) == (165.0, 0.25, 6.0)
    assert (rows["runs/b"]["state"], rows["runs/b"]["best"]) == ("step 20 of 100", 40.0)
    detector = rows["coco/a"]
    assert (detector["task"], detector["model"], detector["metric"], detector["last"]) == (
        "detection", "MaskRCNN", "coco/bbox_mAP", 0.2)  # fmt: skip
    assert (rows["runs/c"]["state"], rows["runs/c"]["best"]) == ("no log", None)
    assert "runs/b: 1 of 6 lines of log.jsonl are damaged and left out" in outcome.out + outcome.err
    assert "runs/c: log.jsonl cannot be read (No such file or directory)" in outcome.out + outcome.err
    assert [line.split()[0] for line in outcome.out.splitlines() if line.split()[0] in rows] == list(rows)
    one_task, two_tasks = 3.4 * 120, Image.open(tmp_path / "out" / "all.png").height
    assert two_tasks > 2 * one_task


def test_another_metric_another_axis_and_a_csv(tool, runs, tmp_path):
    arguments = ("--metric", "mAP", "--x", "time", "--table", tmp_path / "t.csv")
    outcome = tool("plot", runs / "coco" / "a", "--output", tmp_path / "one.png", *arguments)
    assert outcome.code == 0, outcome.err
    (row,) = csv.DictReader((tmp_path / "t.csv").open())
    assert (row["run"], row["metric"], row["best"]) == ("a", "coco/bbox_mAP", "0.2")
    assert Image.open(tmp_path / "one.png").width == 16 * 120


@pytest.mark.parametrize(
    ("change", "arguments", "parts"),
    [
        ("", ["--metric", "mAPP"], ["--metric mAPP: no evaluation has it"]),
        ("", ["--metric", "top2"], ["--metric top2", "did you mean top1?"]),
        ("", ["--table", "t.xlsx"], ["--table must be a .csv or .json, got t.xlsx"]),
        ("empty", [], ["no run with a log is there", "log.jsonl is empty"]),
    ],
)
def test_what_cannot_be_compared_is_one_line(refused, tool, runs, tmp_path, change, arguments, parts):
    if change == "empty":
        runs = runs / "a"
        (runs / "log.jsonl").write_text("")
    refused(tool("plot", runs, "--output", tmp_path / "all.png", *arguments), *parts)
    assert not (tmp_path / "all.png").exists()


def test_places_and_names_are_checked(refused, tool, runs, tmp_path):
    refused(tool("plot", tmp_path / "nowhere", "--output", tmp_path / "a.png"), "nowhere is no folder")
    refused(tool("plot", runs, "--output", tmp_path / "a.jpg"), "--output must be a .png")
