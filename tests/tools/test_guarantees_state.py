"""A guarantee is a test over all tasks: what is kept is what was trained, damage is noticed, other data are refused."""

from __future__ import annotations

import functools
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from guarantees import Case, assert_same_run, content, payload, records, same, weights

from elsa.core import CheckpointError
from elsa.core.archive import read_archive
from elsa.engine import Step, precision


def flip(path: Path, position: int) -> None:
    """Turns one bit of a byte over; done again, it is as before."""
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1 << position % 8]))


def cut(path: Path, length: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(length)


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """A copy of the whole run."""
    return shutil.copytree(whole, tmp_path / "copied")


def test_a_flipped_bit_anywhere_in_what_a_checkpoint_holds_is_noticed(task, copied):
    """Twenty places of the tensors and of what else is stored, in the formats of torch and of safetensors."""
    for name in ("last.pt", "best.safetensors"):
        path = copied / name
        places = payload(path)
        for position in np.random.default_rng(0).choice(places, 20, replace=False).tolist():
            flip(path, position)
            with pytest.raises(CheckpointError, match=r"damaged|truncated"):
                read_archive(path)
            flip(path, position)
        read_archive(path)


@pytest.mark.parametrize("damage", [flip, cut])
def test_damage_is_told_and_the_checkpoint_before_it_used(task, whole, copied, tool, launch, refused, tmp_path, damage):
    last, previous, weights = (copied / name for name in ("last.pt", "previous.pt", "best.safetensors"))
    middle = {path: int(np.median(payload(path))) for path in (last, weights)}
    for path in (last, weights):
        damage(path, middle[path])
        outcome = tool("evaluate", task.recipe, path, "--output", tmp_path / "eval", *task.single)
        refused(outcome, str(path), "damaged" if damage is flip else "truncated")
        assert not (tmp_path / "eval").exists()
    shutil.copy(whole / weights.name, weights)
    auto = ("train", task.recipe, "--output", copied, "--resume", "auto", *task.set(save=2))
    killed = launch("rename:last.pt:1", *auto)  # where the damaged file must not have become the previous one
    assert killed.wait() == [-signal.SIGKILL], killed.said()
    assert f"{last} is " in killed.said()
    assert "going on from previous.pt" in killed.said()
    outcome = tool(*auto)
    assert outcome.code == 0, outcome.err
    assert_same_run(whole, copied)
    for path in (last, previous):
        damage(path, middle[last])
    refused(tool(*auto), str(previous), "damaged" if damage is flip else "truncated")


def half_of_the_images(task: Case, data: Path) -> str:
    """Removes every other training image; how many there are."""
    if task.task == "detection":
        path = data / "annotations" / "instances_train2017.json"
        said = json.loads(path.read_text())
        said["images"] = said["images"][::2]
        kept = {image["id"] for image in said["images"]}
        said["annotations"] = [entry for entry in said["annotations"] if entry["image_id"] in kept]
        path.write_text(json.dumps(said))
        return "images 8 there, 4 now"
    for folder in data.glob("train/*" if task.task == "classification" else "*/training"):
        for path in sorted(folder.iterdir())[::2]:
            path.unlink()
    return "images 48 there, 24 now" if task.task == "classification" else "images 6 there, 3 now"


def test_a_run_is_not_continued_on_other_data(task, whole, copied, tool, refused, tmp_path):
    """Half of the images, and classes of other names: what the run had and what is there now are told."""
    data = shutil.copytree(task.data, tmp_path / "data")
    told = half_of_the_images(task, data)
    auto = ("train", task.recipe, "--output", copied, "--resume", "auto")
    refused(tool(*auto, *task.set(data=data, save=2)), "other data", told)

    if task.task == "classification":
        renamed = shutil.copytree(task.data, tmp_path / "renamed")
        for split in ("train", "val"):
            (renamed / split / "class1").rename(renamed / split / "class1b")
        refused(tool(*auto, *task.set(data=renamed, save=2)), "other data", "class1 there, class1b now")
    else:
        name = "train_dataloader.dataset.dataset.metainfo.classes.1"
        outcome = tool(*auto, *task.set(save=2), f"{name}='one'")
        refused(outcome, f"{name}: '1' in the checkpoint, 'one' now")
    assert_same_run(whole, copied)


def test_a_run_goes_on_where_the_same_data_have_moved(task, whole, copied, tool, tmp_path):
    data = shutil.copytree(task.data, tmp_path / "moved")
    (copied / "last.pt").unlink()
    outcome = tool("train", task.recipe, "--output", copied, "--resume", "auto", *task.set(data=data, save=2))
    assert outcome.code == 0, outcome.err
    assert_same_run(whole, copied)


def test_resuming_a_finished_run_changes_nothing_and_overwriting_starts_afresh(task, whole, copied, tool, refused):
    arguments = ("train", task.recipe, "--output", copied, *task.set(save=2))
    refused(tool(*arguments), "holds a run", "--resume auto", "--overwrite")
    assert tool(*arguments, "--resume", "auto").code == 0
    assert_same_run(whole, copied)
    for name in ("last.pt", "best.pt", "summary.json", "log.jsonl"):
        (copied / name).write_text("of another run")
    outcome = tool(*arguments, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert "resumed" not in outcome.err
    assert_same_run(whole, copied)
    assert len(json.loads((copied / "environment.json").read_text())) == 1


def test_the_average_of_the_weights_is_what_is_evaluated_and_saved(task, whole, tool, tmp_path):
    """Evaluated again, each file gives the numbers of the log exactly."""
    for name in ("last", "best"):
        state, saved = content(whole / f"{name}.pt"), safetensors.torch.load_file(whole / f"{name}.safetensors")
        assert same(dict(state["state_dict_ema"]), saved)
        assert not same(dict(state["state_dict"]), saved)
    history = {entry["step"]: entry for entry in content(whole / "last.pt")["history"]}
    steps = {"last.pt": max(history), "best.safetensors": content(whole / "last.pt")["best_step"]}
    for file, step in steps.items():
        outcome = tool("evaluate", task.recipe, whole / file, "--output", tmp_path / file, *task.single)
        assert outcome.code == 0, outcome.err
        found = json.loads((tmp_path / file / "results.json").read_text())["metrics"]
        shared = found.keys() & history[step].keys()
        assert task.metric in shared
        assert {name: found[name] for name in shared if found[name] is not None} == {
            name: history[step][name] for name in shared if found[name] is not None
        }


def test_bfloat16_on_a_cpu_learns_as_float32_does(task, whole, tool, launch, tmp_path):
    """The first loss is near that of float32, the weights move the same way, and stay float32."""
    first = launch("stop:1", "train", task.recipe, "--output", tmp_path / "first")
    outcome = tool("train", task.recipe, "--output", tmp_path / "half", "--set", *task.bf16)
    assert outcome.code == 0, outcome.err
    assert "bfloat16 on cpu" in outcome.err
    losses = [[record["loss"] for record in records(folder, "train")] for folder in (tmp_path / "half", whole)]
    assert losses[0] != losses[1]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.02)
    assert first.wait() == [0], first.said()
    start, end, half = (weights(folder / "last.pt") for folder in (tmp_path / "first", whole, tmp_path / "half"))
    print("COS", torch.cosine_similarity(end - start, half - start, dim=0))
    assert torch.cosine_similarity(end - start, half - start, dim=0) > 0.8
    state = content(tmp_path / "half" / "last.pt")["state_dict"].values()
    assert {tensor.dtype for tensor in state if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("task", ["classification"], indirect=True)  # others: on GPUs alone
def test_float16_on_a_cpu_finds_its_scale_and_goes_on_bit_for_bit(task, whole, tool, tmp_path, signal_at, monkeypatch):
    """From a scale that is too large, interrupted while it is looked for. The first loss is near that of float32."""
    monkeypatch.setattr(precision, "LossScaler", functools.partial(precision.LossScaler, init_scale=2.0**24))
    half = ("train", task.recipe, *task.set(save=2), "AMP.ENABLED=true", "AMP.DTYPE=float16", "--output")
    outcome = tool(*half, tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "float16 on a CPU is many times slower than float32" in outcome.err
    end = content(tmp_path / "run" / "last.pt")
    assert end["scaler"]["scale"] == 2.0 ** (24 - end["skipped"])
    assert outcome.err.count("which is how the loss scale is found") == end["skipped"] > 0
    told = [records(folder, "train")[0]["loss"] for folder in (tmp_path / "run", whole)]
    assert told[0] == pytest.approx(told[1], rel=0.02)
    for step in (1, 4, None):
        signal_at(*([step, signal.SIGTERM] if step else []))
        assert tool(*half, tmp_path / "parts", "--resume", "auto").code == 0
    assert_same_run(tmp_path / "run", tmp_path / "parts")


def test_gradients_are_clipped_and_their_norm_is_told(task, tool, tmp_path, monkeypatch):
    call, norms = Step.__call__, []

    def noted(self, micro_batches):
        record = call(self, micro_batches)
        applied = [parameter.grad.norm() for parameter in self.source.parameters() if parameter.grad is not None]
        norms.append((record.grad_norm.item(), torch.stack(applied).norm().item()))
        return record

    monkeypatch.setattr(Step, "__call__", noted)
    clip = 0.1 if task.task == "classification" else "{'max_norm': 0.1}"
    outcome = tool("train", task.recipe, "--output", tmp_path / "run", *task.set(clip=clip))
    assert outcome.code == 0, outcome.err
    assert max(told for told, _ in norms) > 0.1
    assert [applied for _, applied in norms] == pytest.approx([min(told, 0.1) for told, _ in norms], rel=1e-3)
    told = [record["grad_norm"] for record in records(tmp_path / "run", "train")]
    assert set(told) <= {norm for norm, _ in norms}


def test_a_run_goes_on_in_another_folder_that_holds_none(task, whole, copied, tool, refused, tmp_path):
    arguments = ("train", task.recipe, *task.set(save=2), "--resume", whole / "last.pt", "--output")
    refused(tool(*arguments, copied), f"{copied} holds another run than --resume {whole / 'last.pt'}", "--overwrite")
    assert_same_run(whole, copied)
    outcome = tool(*arguments, tmp_path / "new")
    assert outcome.code == 0, outcome.err
    assert f"resumed after step {content(whole / 'last.pt')['step']}" in outcome.err
