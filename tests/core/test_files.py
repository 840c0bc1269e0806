"""Files and folders are whole or not there; JSON is strict; leftovers are swept."""

from __future__ import annotations

import json
import os

import pytest

from elsa.core import did_you_mean, sweep, to_json, write_json, write_text, write_then_rename


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "state"
    write_text(path, "old")

    def fail(beside):
        beside.write_text("half of the n")
        raise RuntimeError("unexpected pos 448 vs 392\nin a stack")  # torch's words for a full disk

    with pytest.raises(OSError, match=r"cannot be written \(unexpected pos") as caught:
        write_then_rename(path, fail)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    for name in (".last.pt.123.tmp", ".best.safetensors.9.tmp", "last.pt", ".hidden", "notes.tmp"):
        (tmp_path / name).write_text("x")
    assert sweep(tmp_path) == [".best.safetensors.9.tmp", ".last.pt.123.tmp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "last.pt", "notes.tmp"]


def test_json_has_no_number_that_other_readers_refuse(tmp_path):
    def refuse(text):
        raise AssertionError(text)

    content = {"a": float("nan"), "b": [1.5, float("inf")], "c": ({"d": float("-inf")}, "NaN")}
    assert json.loads(to_json(content), parse_constant=refuse) == {
        "a": None,
        "b": [1.5, None],
        "c": [{"d": None}, "NaN"],
    }
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)["a"] is None


def test_a_file_has_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_the_nearest_name_is_suggested():
    assert did_you_mean("elsa_swin_tinny", ["elsa_swin_tiny", "volo"]) == "; did you mean elsa_swin_tiny?"
    assert did_you_mean("zzz", ["elsa_swin_tiny"]) == ""
