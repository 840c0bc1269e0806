"""A file is either whole or not there."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest
import safetensors.torch
import torch

from elsa.core import CheckpointError
from elsa.core.archive import read_archive, write_tensors
from elsa.engine import sha256, write_text, write_then_rename
from elsa.engine.checkpoint import save_checkpoint
from elsa.engine.distributed import Runtime
from elsa.engine.logbook import Logbook, read_log

ALONE = Runtime(0, 1, torch.device("cpu"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state"
    write_text(path, "old")

    def fail(beside):
        beside.write_text("half of the n")
        raise OSError(28, "disk full")

    with pytest.raises(OSError, match="disk full") as caught:
        write_then_rename(path, fail)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_last_best_and_weights_agree(tmp_path):
    about = {"config": {"TRAIN.LR": 1.0}, "classes": ["a", "b"], "meta": {"dataset_meta": {"category_ids": [0, "7"]}}}
    state = {"arch": "a", "epoch": 1, **about, "state_dict": {"w": torch.ones(2)}}
    save_checkpoint(tmp_path, state, {"w": torch.full((2,), 5.0)}, is_best=True)
    save_checkpoint(tmp_path, {**state, "epoch": 2}, {"w": torch.full((2,), 6.0)}, is_best=False)
    assert torch.load(tmp_path / "best.pt", weights_only=True)["epoch"] == 1
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 2
    assert safetensors.torch.load_file(tmp_path / "best.safetensors")["w"].tolist() == [5.0, 5.0]
    assert safetensors.torch.load_file(tmp_path / "last.safetensors")["w"].tolist() == [6.0, 6.0]
    with safetensors.safe_open(tmp_path / "best.safetensors", "pt") as stream:
        assert {name: json.loads(stream.metadata()[name]) for name in about} == about


def test_weights_are_written_under_the_name_that_is_given(tmp_path):
    """A library's own temporary file, which a killed process would leave, would take the link's place."""
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_tensors(tmp_path / "link", {"w": torch.ones(2)}, {"arch": "a"})
    assert (tmp_path / "link").is_symlink()
    assert safetensors.torch.load_file(tmp_path / "file")["w"].tolist() == [1.0, 1.0]


def test_whatever_bit_is_flipped_it_is_refused_or_changes_nothing(tmp_path):
    """Everywhere in the files, not in the tensors alone: padding may change, a mark that a record is a folder not."""
    state = {
        "arch": "a",
        "epoch": 1,
        "config": {"TRAIN.LR": 1.0},
        "state_dict": {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(3, dtype=torch.bfloat16)},
    }
    save_checkpoint(tmp_path, state, {"w": torch.full((2,), 5.0)}, is_best=False)
    for path in (tmp_path / "last.pt", tmp_path / "last.safetensors"):
        raw, content = path.read_bytes(), repr(read_archive(path))
        refused = 0
        for position, bit in itertools.chain.from_iterable(((p, p % 8), (p, 4)) for p in range(len(raw))):
            damaged = bytearray(raw)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert repr(read_archive(path)) == content, (path.name, position, bit)
            except CheckpointError:
                refused += 1
        assert refused > len(raw)
        for length in range(0, len(raw), 7):
            path.write_bytes(raw[:length])
            with pytest.raises(CheckpointError):
                read_archive(path)


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 10**6)
    assert sha256(tmp_path / "f") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_the_log_of_a_run_that_died_is_cut_back_to_its_checkpoint(tmp_path):
    book = Logbook(tmp_path, ALONE, total_steps=10, tensorboard=False)
    for step in (1, 2, 3):
        book.write("train", step, "", loss=float(step))
    book.close()
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "st')
    resumed = Logbook(tmp_path, ALONE, total_steps=10, from_step=2, tensorboard=False)
    resumed.write("train", 3, "", loss=30.0)
    resumed.close()
    assert [(record["step"], record["loss"]) for record in read_log(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    book = Logbook(tmp_path, ALONE, total_steps=2)
    book.write("eval", 1, "", top1=12.5)
    book.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/top1")] == [(1, 12.5)]
