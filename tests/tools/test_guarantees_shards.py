"""A guarantee is a test over all tasks: a model that is divided among the processes (FSDP2) trains as a whole one does,
and goes on from its sharded checkpoints, whatever the number of processes."""

from __future__ import annotations

import re
import shutil
import signal

import pytest
import safetensors.torch
import torch
from guarantees import records, same, saved

# 20 steps, with a line for each.
LONGER = {
    "classification": ["TRAIN.EPOCHS=4", "LOG.EVERY=1"],
    "detection": ["train_cfg.max_epochs=5", "train_cfg.val_interval=5", "run.log_every=1"],
    "segmentation": ["train_cfg.max_iters=20", "train_cfg.val_interval=20", "run.log_every=1"],
}
PARALLEL = {"classification": "TRAIN.PARALLEL", "detection": "run.parallel", "segmentation": "run.parallel"}


def command(task, folder, how: str, *more: str) -> list[object]:
    two = ["global_batch=4"] if task.task == "segmentation" else []  # batch norm of a 1×1 map needs two images
    settings = [f"{PARALLEL[task.task]}={how}", *two, *more]
    return ["train", task.recipe, "--output", folder, *task.set(save=2), *settings]


@pytest.fixture(scope="session")
def sharded_runs(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture
def sharded(task, launch, sharded_runs):
    """The folder of an uninterrupted run of two processes that share the model: read only."""
    folder = sharded_runs / task.task
    if not folder.exists():
        both = launch("none", *command(task, folder, "fsdp"), processes=2)
        assert both.wait(300) == [0, 0], both.said() + both.said(1)
    return folder


def assert_same_weights(one, other) -> None:
    for name in ("last", "best"):
        assert same(saved(one, name), saved(other, name)), name
    assert same(
        [(record["step"], record["lr"]) for record in records(one, "eval")],
        [(record["step"], record["lr"]) for record in records(other, "eval")],
    )


def test_losses_are_those_of_whole_models(linear, launch, tmp_path):
    """20 steps in float32 with an average of the weights, loss by loss; what rounding could decide, which proposals are
    drawn for one, is not drawn."""
    losses = []
    for how in ("fsdp", "ddp"):
        both = launch("none", *command(linear, tmp_path / how, how, *LONGER[linear.task]), processes=2)
        assert both.wait(300) == [0, 0], both.said() + both.said(1)
        losses.append({record["step"]: record["loss"] for record in records(tmp_path / how, "train")})
    assert losses[0].keys() == losses[1].keys() >= set(range(1, 21))
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=1e-6, abs=1e-6)
    assert not (tmp_path / "fsdp" / "last.pt").exists()
    assert saved(tmp_path / "fsdp").keys() == saved(tmp_path / "ddp").keys()


def test_a_killed_run_goes_on_to_the_same_end(task, sharded, launch, tmp_path):
    """Killed after the save of step 4 has begun; what it has begun and not finished is cleared away."""
    run = tmp_path / "run"
    both = launch("kill:5@1", *command(task, run, "fsdp"), processes=2)
    assert both.wait() == [1, -signal.SIGKILL], both.said()
    assert "lost process 1 of 2" in both.said()
    (run / "shards" / ".step-00000099.tmp").mkdir()
    again = launch("none", *command(task, run, "fsdp"), "--resume", "auto", processes=2)
    assert again.wait(300) == [0, 0], again.said()
    assert re.search("resumed after step [234]:", again.said()), (
        again.said()
    )  # of 4 there may be no more than the beginning
    assert_same_weights(sharded, run)
    assert [path.name for path in (run / "shards").iterdir() if path.name.startswith(".")] == []
    assert len(list((run / "shards").iterdir())) == 2


def test_one_that_is_lost_in_the_first_step_is_no_mistake_of_the_recipe(task, launch, tmp_path):
    both = launch("begin:1@1", *command(task, tmp_path / "run", "fsdp"), processes=2)
    assert both.wait() == [1, -signal.SIGKILL], both.said()
    assert "lost process 1 of 2" in both.said()


def test_any_number_of_processes_goes_on(task, sharded, launch, tmp_path):
    """Interrupted after step 1: one process, and two with whole models, read the shards; two that divide it read what
    they leave. The weights that come in are those that went out."""
    run = tmp_path / "run"
    for fault, how, processes, step in (("stop:1", "fsdp", 2, 1), ("stop:2", "fsdp", 1, 2), ("stop:3", "ddp", 2, 3),
                                        ("stop:4", "fsdp", 2, 4)):  # fmt: skip
        before = len(list((run / "shards").iterdir())) if run.exists() else 0
        part = launch(fault, *command(task, run, how), "--resume", "auto", processes=processes)
        assert part.wait() == [0] * processes, part.said()
        assert f"stopped after step {step}" in part.said()
        assert f"resumed after step {step - 1}" in part.said() or not before
    last = launch("none", *command(task, run, "fsdp"), "--resume", "auto", processes=2)
    assert last.wait(300) == [0, 0], last.said()
    assert [record["step"] for record in records(run, "eval")] == [
        record["step"] for record in records(sharded, "eval")
    ]
    assert {name: tensor.shape for name, tensor in saved(run).items()} == {
        name: tensor.shape for name, tensor in saved(sharded).items()
    }


def test_one_file_is_made_of_the_shards(task, sharded, tool, refused, launch, tmp_path):
    """Weights, and a last.pt from which a run of one process goes on."""
    outcome = tool("convert", sharded, "--output", tmp_path / "one.safetensors")
    assert outcome.code == 0, outcome.err
    assert same(safetensors.torch.load_file(tmp_path / "one.safetensors"), saved(sharded))
    refused(tool("convert", sharded, "--output", tmp_path / "one.bin"), "must end in .safetensors or .pt")
    refused(tool("convert", sharded, "--output", tmp_path / "one.safetensors"), "--overwrite replaces it")
    refused(tool("convert", tmp_path / "none", "--output", tmp_path / "x.pt"), "does not exist")
    refused(tool("convert", sharded, "--output", tmp_path / "x.pt", "--half"), "--half has no effect on .pt")
    assert tool("convert", sharded, "--output", tmp_path / "half.safetensors", "--half").code == 0
    halves = {key: value.half() if value.is_floating_point() else value for key, value in saved(sharded).items()}
    assert same(safetensors.torch.load_file(tmp_path / "half.safetensors"), halves)

    (whole := tmp_path / "whole").mkdir()
    assert tool("convert", sharded, "--output", whole / "last.pt").code == 0
    content = torch.load(whole / "last.pt", weights_only=True)
    assert same(dict(content["state_dict_ema"]), saved(sharded))
    outcome = tool(*command(task, whole, "fsdp"), "--resume", "auto")  # nothing is left to do
    assert outcome.code == 0, outcome.err
    assert same(torch.load(whole / "last.pt", weights_only=True)["optimizer"], content["optimizer"])


def test_a_damaged_shard_is_noticed(task, sharded, launch, tmp_path):
    """A flipped bit in one file: the checkpoint before it is gone on from; in both: refused, and nothing is lost."""
    run = shutil.copytree(sharded, tmp_path / "run")
    newest, before = sorted((run / "shards").iterdir(), reverse=True)
    for path in (newest, before):
        file = sorted(path.glob("*.safetensors"))[1]
        raw = bytearray(file.read_bytes())
        raw[-5] ^= 1
        file.write_bytes(raw)
        auto = launch("none", *command(task, run, "fsdp"), "--resume", "auto", processes=2)
        if path == newest:
            assert auto.wait(300) == [0, 0], auto.said()
            assert f"{file} is damaged" in auto.said() and f"going on from {before.name}" in auto.said()
            assert_same_weights(sharded, run)
            shutil.rmtree(run)
            shutil.copytree(sharded, run)
            file.write_bytes(raw)
        else:
            assert auto.wait() == [2, 2]
            assert auto.said().splitlines()[-1].startswith("error: ") and "is damaged" in auto.said()
            assert sorted((run / "shards").iterdir(), reverse=True) == [newest, before]


def test_half_precision_and_recomputed_activations_divide_as_well(config, launch, tmp_path):
    """bfloat16 with activation checkpointing: the losses are near those of whole models that do neither."""
    losses = []
    for how, more in (
        ("fsdp", ["MODEL.GRAD_CHECKPOINTING=true", "AMP.ENABLED=true", "AMP.DTYPE=bfloat16"]),
        ("ddp", []),
    ):
        settings = ["--set", f"TRAIN.PARALLEL={how}", "LOG.EVERY=1", "TRAIN.EPOCHS=2", *more]
        both = launch("none", "train", config, "--output", tmp_path / how, *settings, processes=2)
        assert both.wait(300) == [0, 0], both.said()
        losses.append([record["loss"] for record in records(tmp_path / how, "train")])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
