"""Weights as people bring them: wrapped, half, quantised, broken, and files that only look like checkpoints."""

from __future__ import annotations

import datetime
import itertools

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from safetensors.torch import save_file
from torch import nn

from elsa.core import CheckpointError
from elsa.core.archive import checkpoint_file, read_archive
from elsa.models import load_pretrained

PREFIXES = ("module.", "_orig_mod.", "model.")


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def same(one, other):
    return all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())


def refusal(state, **options):
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model(), {"state_dict": state}, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ORDERS = [*itertools.permutations(PREFIXES, 2), *itertools.permutations(PREFIXES, 3), ("module.", "module.")]


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_wrappers_in_any_order(order):
    source, loaded = model(1), model(2)
    load_pretrained(loaded, {"state_dict": {"".join(order) + name: t for name, t in source.state_dict().items()}})
    assert same(loaded, source)


def test_what_an_average_counts_and_parts_compiled_alone():
    source, loaded = model(1), model(2)
    state = {"n_averaged": torch.tensor(3), **{f"module.{name}": t for name, t in source.state_dict().items()}}
    load_pretrained(loaded, {"state_dict": state})
    assert same(loaded, source)
    loaded = model(2)
    state = {name.replace("3.", "3._orig_mod."): value for name, value in source.state_dict().items()}
    load_pretrained(loaded, {"state_dict": state})
    assert same(loaded, source)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_cast_and_said(kind):
    source, loaded = model(1).to(kind), model(2)
    report = load_pretrained(loaded, {"state_dict": source.state_dict()})
    assert loaded[3].weight.dtype == torch.float32
    assert torch.equal(loaded[3].weight, source[3].weight.float())
    assert f"cast from {str(kind).removeprefix('torch.')}" in str(report)


def test_batch_counts_that_were_averaged_are_taken():
    state = {**model(1).state_dict(), "1.num_batches_tracked": torch.tensor(7.0)}
    loaded = model(2)
    load_pretrained(loaded, {"state_dict": state})
    assert loaded[1].num_batches_tracked.item() == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: (t * 10).to(torch.int8), "3.weight is int8, the model has float32"),
        (lambda t: t > 0, "3.weight is bool"),
        (lambda t: t.to(torch.complex64), "3.weight is complex64"),
        (lambda t: t.to(torch.float8_e4m3fn), "3.weight is float8_e4m3fn"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "3.weight is qint8"),
        (lambda t: t.index_fill(0, torch.tensor([1]), float("nan")), "1 that are not finite (NaN or infinity)"),
        (lambda t: t.double() * 1e300, "3.weight"),
        (lambda t: t / 0, "3.weight"),
    ],
    ids=["int8", "bool", "complex", "float8", "quantised", "NaN", "too large for float32", "infinite"],
)
@pytest.mark.filterwarnings("ignore")
def test_numbers_that_are_no_weights_are_refused_by_name(change, said):
    state = model(1).state_dict()
    text = refusal({**state, "3.weight": change(state["3.weight"])})
    assert said in text
    assert "3.weight" in text
    assert "0.weight" not in text


def test_a_broken_head_that_is_ignored_is_no_matter():
    state = model(1).state_dict()
    state = {**state, "3.weight": state["3.weight"] * float("nan")}
    load_pretrained(model(), {"state_dict": state}, ignore=["3.*"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n <!DOCTYPE html><html>Quota exceeded</html>", "web page"),
        (b"<html><body>404</body></html>", "web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        (b"PK\3\4cut off", "truncated"),
    ],
)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_downloads_leave_is_named(tmp_path, content, said, ending):
    path = tmp_path / f"w{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_archive(path)
    assert str(path) in str(caught.value)
    assert "--trust" not in str(caught.value)


def test_a_folder_stands_for_its_best_then_its_last(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder without best\.pt or last\.pt"):
        checkpoint_file(tmp_path)
    for name in ("last.safetensors", "last.pt", "best.pt"):
        (tmp_path / name).touch()
        assert checkpoint_file(tmp_path) == tmp_path / name
    for name in ("nowhere.pt", "name too long" * 100, "with\0zero"):
        with pytest.raises(CheckpointError):
            checkpoint_file(tmp_path / name)


def test_pretrained_takes_a_run(tmp_path):
    source, loaded = model(1), model(2)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "last.pt")
    load_pretrained(loaded, tmp_path)
    assert same(loaded, source)


def test_safetensors_of_other_writers(tmp_path):
    source, loaded = model(1), model(2)
    save_file(source.state_dict(), tmp_path / "w.safetensors", metadata={"format": "pt", "note": "1"})
    load_pretrained(loaded, tmp_path / "w.safetensors")
    assert same(loaded, source)
    assert read_archive(tmp_path / "w.safetensors").keys() == source.state_dict().keys()


def test_what_published_files_hold_beside_weights_needs_no_trust(tmp_path):
    """The message hub of mmengine holds a HistoryBuffer, which pickles functions; others hold dates and arrays."""
    hub = MessageHub.get_instance("test_weights")
    hub.update_scalar("train/loss", 1.0)
    source, loaded = model(1), model(2)
    content = {
        "meta": {"time": datetime.datetime.now(), "PALETTE": np.zeros((3, 3)), "dataset_meta": {"classes": ("a", "b")}},
        "state_dict": source.state_dict(),
        "message_hub": hub.state_dict(),
    }
    torch.save(content, tmp_path / "mm.pth")
    read = read_archive(tmp_path / "mm.pth")
    assert read["meta"]["dataset_meta"]["classes"] == ("a", "b")
    load_pretrained(loaded, read)
    assert same(loaded, source)


def test_stand_ins_run_nothing(tmp_path):
    """``builtins.getattr`` in a file stands for nothing, whatever it is asked for."""

    class Asks:
        def __reduce__(self):
            return getattr, (tmp_path, "name")

    torch.save({"state_dict": {"w": torch.ones(1)}, "x": Asks()}, tmp_path / "x.pth")
    assert type(read_archive(tmp_path / "x.pth")["x"]).__name__ == "StandIn"
