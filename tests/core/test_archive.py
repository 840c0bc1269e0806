"""Checkpoint files are read without executing anything, and damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elsa.core import CheckpointError
from elsa.core.archive import read_archive, write_tensors


def content():
    generator = torch.Generator().manual_seed(0)
    return {"state_dict": {"w": torch.randn(64, 64, generator=generator), "n": torch.tensor(3)}, "step": 7}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flipped(path, position, bit):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1 << bit
    other = path.with_name(f"flipped{position}_{bit}{path.suffix}")
    other.write_bytes(raw)
    return other


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_every_flipped_bit_of_the_weights_is_noticed(tmp_path, kind):
    path, whole = tmp_path / f"file.{kind}", content()
    if kind == "pt":
        torch.save(whole, path)
        assert same(read_archive(path)["state_dict"], whole["state_dict"])
    else:
        write_tensors(path, whole["state_dict"], {"arch": "a"})
        read = read_archive(path)
        assert same(read["state_dict"], whole["state_dict"])
        assert read["arch"] == "a"
    start = path.read_bytes().find(whole["state_dict"]["w"].numpy().tobytes())
    assert start > 0
    random = np.random.default_rng(0)
    for position in start + random.integers(0, 64 * 64 * 4, 20):
        with pytest.raises(CheckpointError, match="damaged"):
            read_archive(flipped(path, int(position), int(random.integers(8))))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_flip_anywhere_changes_nothing_or_is_noticed(tmp_path, kind):
    """Also in names, sizes and directories: what is read is what was written, or an error."""
    path, whole = tmp_path / f"file.{kind}", content()
    if kind == "pt":
        torch.save(whole, path)
    else:
        write_tensors(path, whole["state_dict"], {"arch": "a"})
    random, noticed = np.random.default_rng(1), 0
    for position in random.integers(0, path.stat().st_size, 60):
        other = flipped(path, int(position), int(random.integers(8)))
        try:
            read = read_archive(other)
        except CheckpointError:
            noticed += 1
            continue
        assert same(read["state_dict"], whole["state_dict"])
        assert read["step" if kind == "pt" else "arch"] == (7 if kind == "pt" else "a")
    assert noticed > 30


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_file_is_refused(tmp_path, kind, share):
    path = tmp_path / f"file.{kind}"
    if kind == "pt":
        torch.save(content(), path)
    else:
        write_tensors(path, content()["state_dict"], {})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        read_archive(path)


def test_types_that_files_have_keep_their_bits(tmp_path):
    tensors = {
        str(kind): torch.arange(6).to(kind).reshape(2, 3)
        for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    } | {"empty": torch.empty(0, 4), "scalar": torch.tensor(1.5)}
    write_tensors(tmp_path / "all.safetensors", tensors, {})
    assert same(read_archive(tmp_path / "all.safetensors"), tensors)
