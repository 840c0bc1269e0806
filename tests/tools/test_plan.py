"""Recipes meet machines: what is derived, adapted, refused and foreseen, in each task."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from elsa.engine.memory import Activations, Memory
from elsa.tools.tasks import planning
from elsa.tools.tasks.outlook import told

SHORT = ("TRAIN.EPOCHS=1", "TRAIN.WARMUP_EPOCHS=0")
TWO = "optim_wrapper.accumulative_counts=2"


def plan_of(folder):
    return json.loads((folder / "plan.json").read_text())


def foreseen(tool, *arguments):
    outcome = tool("plan", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


# ---- in a training ---------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_of(monkeypatch):
    """``gpu_of(bytes for each image, images that fit)``: the device counts as a GPU with room for so many."""

    def call(image: float, images: float) -> None:
        memory = Memory({"parameters": 100.0}, image, 0.0)
        monkeypatch.setattr(planning, "usable_memory", lambda device: 100.0 + images * image)
        monkeypatch.setattr(planning, "measure", lambda *_: Activations(image, 0, 0.0))
        monkeypatch.setattr(planning, "estimate", lambda *_, **__: memory)

    return call


def check_fewest(outcome, folder, batch, accumulate, room):
    """The run has the fewest micro-batches of which ``room`` images fit, by the estimate that it tells."""
    plan = plan_of(folder)
    assert (plan["global_batch"], plan["accumulate"], plan["micro_batch"]) == (batch, accumulate, batch // accumulate)
    assert plan["memory"]["usable"] == 100 + room * 1e6
    assert plan["memory"]["total"] == 100 + batch // accumulate * 1e6
    assert "memory of a process, estimated" in outcome.err
    assert any("the fewest that fit" in line for line in plan["adapted"])
    if (folder / "config.yaml").exists():
        assert yaml.safe_load((folder / "config.yaml").read_text())["TRAIN"]["ACCUM"] is None  # nothing is written back
    else:
        assert "accumulative_counts" not in (folder / "config.py").read_text()


def check_rescaled(folder, key, batch, lr):
    """The run has an image less in its batch than the recipe, and a learning rate that is as much smaller."""
    plan = plan_of(folder)
    assert plan["global_batch"] == batch - 1
    assert plan["lr"] == pytest.approx(lr * (batch - 1) / batch)
    assert plan["steps_per_epoch"] == plan["train_images"] // (batch - 1)
    assert any(f"{key} {batch} → {batch - 1} for 1 processes, rounded down" in line for line in plan["adapted"])
    content = torch.load(folder / "last.pt", weights_only=True)
    assert content["config"][key] == batch and content["global_batch"] == batch - 1


@pytest.mark.parametrize(("name", "options", "batch", "room"), [
    ("config", SHORT, 8, 5),
    ("segmentor", ["train_cfg.max_iters=1", "global_batch=4"], 4, 2),
])  # fmt: skip
def test_the_fewest_micro_batches_that_fit(tool, request, tmp_path, gpu_of, name, options, batch, room):
    gpu_of(1e6, room)
    outcome = tool("train", request.getfixturevalue(name), "--output", tmp_path / "run", "--set", *options)
    assert outcome.code == 0, outcome.err
    check_fewest(outcome, tmp_path / "run", batch, 2, room)


@pytest.mark.parametrize(("name", "options", "rule", "key", "batch", "lr"), [
    ("config", [*SHORT, "TRAIN.ACCUM=1"], "TRAIN.LR_RULE", "DATA.BATCH", 7, 3e-3),
    ("segmentor", ["train_cfg.max_iters=1", TWO, "optim_wrapper.optimizer.lr=1e-3"], "run.lr_rule", "global_batch", 5,
     1e-3),
])  # fmt: skip
def test_learning_rates_follow_a_batch_that_had_to_change(tool, request, tmp_path, name, options, rule, key, batch, lr):
    """Mixup makes 7 images 6; two micro-batches make 5 images 4."""
    recipe, options = request.getfixturevalue(name), ["--set", f"{key}={batch}", *options]
    assert tool("train", recipe, "--output", tmp_path / "no", *options).code == 2
    assert not (tmp_path / "no").exists()
    outcome = tool("train", recipe, "--output", tmp_path / "run", *options, f"{rule}=linear")
    assert outcome.code == 0, outcome.err
    check_rescaled(tmp_path / "run", key, batch, lr)


def test_a_detector_does_both(tool, detector, tmp_path, gpu_of):
    """Of 5 images, which go together by twos, 2 have room at a time: two micro-batches make 4."""
    gpu_of(1e6, 2)
    options = ["--set", "global_batch=5", "optim_wrapper.optimizer.lr=0.001", "train_cfg.max_epochs=1"]
    assert tool("train", detector, "--output", tmp_path / "no", *options, TWO).code == 2
    assert not (tmp_path / "no").exists()
    options += ["run.lr_rule=linear", "train_dataloader.aspect_group=2"]
    outcome = tool("train", detector, "--output", tmp_path / "run", *options)
    assert outcome.code == 0, outcome.err
    check_fewest(outcome, tmp_path / "run", 4, 2, 2)
    check_rescaled(tmp_path / "run", "global_batch", 5, 1e-3)


def test_what_does_not_fit_is_said_with_cures(tool, config, tmp_path, gpu_of):
    gpu_of(1e6, 1)  # mixup needs two at a time
    outcome = tool("train", config, "--output", tmp_path / "run", "--set", *SHORT)
    assert outcome.code == 0, outcome.err
    plan = plan_of(tmp_path / "run")
    assert plan["micro_batch"] == 2
    assert any("2 images at a time do not fit: MODEL.GRAD_CHECKPOINTING=true or TRAIN.PARALLEL=fsdp" in line
               for line in plan["adapted"])  # fmt: skip


def test_an_estimate_that_cannot_be_made_is_said(tool, config, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("depends on\nnumbers")

    monkeypatch.setattr(planning, "usable_memory", lambda device: 1e12)
    monkeypatch.setattr(planning, "measure", fails)
    outcome = tool("train", config, "--output", tmp_path / "run", "--set", *SHORT)
    assert outcome.code == 0, outcome.err
    assert "memory is not estimated (RuntimeError: depends on numbers)" in outcome.err
    assert plan_of(tmp_path / "run")["accumulate"] == 1


@pytest.mark.parametrize("task", ["classification"], indirect=True)
def test_on_a_cpu_nothing_is_estimated(whole):
    plan = plan_of(whole)
    assert (plan["accumulate"], plan["memory"], plan["adapted"]) == (1, None, [])


def test_a_resumed_run_keeps_the_batch_that_it_had(tool, refused, config, tmp_path):
    options = ["--output", tmp_path / "run", "--set", *SHORT, "DATA.BATCH=7", "TRAIN.LR_RULE=sqrt"]
    assert tool("train", config, *options).code == 0
    assert tool("train", config, *options, "TRAIN.ACCUM=3", "--resume", "auto").code == 0  # 3 × 2
    assert plan_of(tmp_path / "run")["global_batch"] == 6
    # A new run with 4 micro-batches would take 8 images; this one has 6.
    outcome = tool("train", config, *options, "TRAIN.ACCUM=4", "--resume", "auto")
    refused(outcome, "a run that is resumed keeps its global batch: DATA.BATCH 6", "TRAIN.ACCUM 4")


def test_a_batch_that_cannot_be_divided(refused, tool, config, tmp_path):
    outcome = tool("plan", config, "--gpus", "6", "--set", "DATA.BATCH=1024")
    refused(outcome, "DATA.BATCH 1024 is no multiple of 6 processes", "even number", "2, 4, 8, 16",
            "TRAIN.LR_RULE=linear or sqrt")  # fmt: skip


# ---- a machine that is not here --------------------------------------------------------------------------------------


def test_elsa_swin_on_eight_gpus(tool):
    plan = foreseen(tool, "elsa_swin_tiny", "--memory", "16")
    assert (plan["global_batch"], plan["accumulate"], plan["micro_batch"]) == (1024, 1, 128)
    assert plan["steps_per_epoch"] == 1_281_167 // 1024 == 1251
    assert plan["total_steps"] == 310 * 1251
    assert plan["fits"] and plan["learning_rates"]["TRAIN.LR"] == 1e-3
    parts = plan["memory"]["parts"]
    assert parts["optimizer state"] == 2 * parts["parameters"] == 2 * parts["gradients"] == 8 * plan["parameters"]
    less = foreseen(tool, "elsa_swin_tiny", "--memory", "16", "--set", "MODEL.GRAD_CHECKPOINTING=true")
    assert less["memory"]["image"] < plan["memory"]["image"] / 4


def test_the_rule_on_six_gpus_and_accumulation_on_small_ones(tool):
    arguments = ("digits_elsa_swin_nano", "--gpus", "6", "--memory", "0.05", "--set", "DATA.BATCH=1024",
                 "TRAIN.LR_RULE=linear", "TRAIN.LR=1e-3")  # fmt: skip
    plan = foreseen(tool, *arguments)
    assert tool("plan", *arguments).out.splitlines() == list(told(plan))
    assert plan["accumulate"] > 1 and plan["fits"]
    assert plan["global_batch"] % (6 * plan["accumulate"]) == 0
    assert plan["learning_rates"]["TRAIN.LR"] == pytest.approx(1e-3 * plan["global_batch"] / 1024)


@pytest.mark.parametrize(("name", "images", "steps"), [("mask_rcnn_elsa_swin_tiny_1x", 117_266, 12 * 7329),
                                                       ("upernet_elsa_swin_tiny", 20_210, 160_000)])  # fmt: skip
def test_dense_recipes(tool, name, images, steps):
    plan = foreseen(tool, name, "--memory", "6", "--parallel", "fsdp", "--nodes", "2", "--gpus", "4")
    assert (plan["micro_batch"], plan["images"], plan["total_steps"]) == (2, images, steps)
    assert plan["fits"] and plan["memory"]["image"] > 2**29
    text = "\n".join(told(plan))
    assert "2 × 4 GPUs" in text and "gathered blocks" in text


def test_volo_d5_in_eight_times_80_gib(tool):
    plan = foreseen(tool, "elsa_volo_d5_512", "--parallel", "fsdp")
    assert plan["fits"] and (plan["micro_batch"], plan["accumulate"]) == (30, 1)
    whole = 4 * plan["parameters"]
    assert plan["memory"]["parts"]["parameters"] == pytest.approx(whole / 8)
    assert plan["memory"]["parts"]["optimizer state"] == pytest.approx(2 * whole / 8)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--gpus", "0"], ["--gpus must be an integer above 0", "'0'"]),
        (["--nodes", "two"], ["--nodes must be an integer", "'two'"]),
        (["--memory", "nan"], ["--memory must be a number above 0"]),
        (["--precision", "bf61"], ["--precision must be one of fp32, bf16, fp16", "did you mean bf16?"]),
        (["--parallel", "zero"], ["--parallel must be one of ddp, fsdp"]),
        (["--memry", "3"], ["unknown argument '--memry'", "did you mean --memory?"]),
        (["--images", "10"], ["--images 10 are fewer than a batch of 1024"]),
        (["--set", "DATA.BATCH=8000000"], ["the 1281167 images of the recipe's data are fewer than a batch of 8"]),
    ],
)
def test_mistakes_of_the_verb(refused, tool, options, parts):
    refused(tool("plan", "elsa_swin_tiny", *options), *parts)
