"""The main job: train, die, resume, evaluate; alone and in several processes."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from elsa.engine import read_log, sha256


def ink(path) -> float:
    """Share of a picture that is not white."""
    return float((np.asarray(Image.open(path).convert("L")) < 250).mean())


def equal_states(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal_states, a, b))
    return a == b or (isinstance(a, float) and a == pytest.approx(b, rel=1e-12))


@pytest.fixture
def trained(tool, config, tmp_path):
    """A finished run's folder."""
    outcome = tool("train", config, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    return tmp_path / "run"


def test_a_run_leaves_what_it_promises(trained, config, tool):
    names = {path.name for path in trained.iterdir()}
    assert names >= {"last.pt", "last.safetensors", "best.pt", "best.safetensors", "config.yaml", "environment.json",
                     "log.jsonl", "train.log", "summary.json", "curves.png"}  # fmt: skip
    assert not any(name.endswith(".tmp") for name in names)
    summary = json.loads((trained / "summary.json").read_text())
    records = read_log(trained)
    evaluated = [record for record in records if record["kind"] == "eval"]
    assert [record["epoch"] for record in evaluated] == [1, 2, 3]
    assert summary["best"]["top1"] == max(record["top1"] for record in evaluated)
    steps = [record for record in records if record["kind"] == "train"]
    assert {"loss", "lr", "grad_norm", "images_per_s", "data_wait"} <= steps[0].keys()
    assert all(0 <= record["data_wait"] <= 1 for record in steps)
    environment = json.loads((trained / "environment.json").read_text())
    assert environment[0]["packages"]["torch"] == torch.__version__
    # What was saved before step 0 reproduces the configuration.
    assert tool("train", trained / "config.yaml", "--print-config").out == tool("train", config, "--print-config").out


@pytest.mark.parametrize("file", ["last.pt", "last.safetensors"])
def test_evaluation_in_another_process_gives_exactly_the_reported_numbers(trained, config, start, tmp_path, file):
    process = start([], "evaluate", config, trained / file, "--output", tmp_path / "eval", "--pictures", 12)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    results = json.loads((tmp_path / "eval/results.json").read_text())
    last = json.loads((trained / "summary.json").read_text())["last"]
    assert results["metrics"] == {name: last[name] for name in ("top1", "top5", "loss")}
    assert results["count"] == 20
    assert results["checkpoint"]["sha256"] == sha256(trained / file)
    assert f"{last['top1']:.2f} %" in output
    assert ink(tmp_path / "eval/predictions.png") > 0.3


def test_the_same_seed_gives_the_same_run_and_another_seed_another(trained, config, tool, tmp_path):
    tool("train", config, "--output", tmp_path / "again")
    tool("train", config, "--output", tmp_path / "other", "--set", "TRAIN.SEED=1")
    first, again, other = (torch.load(path / "last.pt")["state_dict"] for path in
                           (trained, tmp_path / "again", tmp_path / "other"))  # fmt: skip
    assert equal_states(first, again)
    assert not equal_states(first, other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_stops_a_run_cleanly(config, start, tmp_path, number):
    """As by Ctrl-C in a terminal: loader processes are in the group, and a launcher forwards the signal once more."""
    options = ["--set", "TRAIN.EPOCHS=10000", "DATA.WORKERS=1"]
    process = start([], "train", config, "--output", tmp_path / "run", *options)
    for line in process.stdout:
        if "epoch 1/" in line:
            os.killpg(process.pid, number)
            time.sleep(0.02)
            process.send_signal(number)
            break
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0, rest
    assert "--resume auto" in rest
    assert "Traceback" not in rest
    assert torch.load(tmp_path / "run/last.pt")["step"] > 0


def test_a_run_goes_on_in_another_folder(trained, config, tool, tmp_path):
    outcome = tool("train", config, "--output", tmp_path / "new", "--resume", trained)
    assert outcome.code == 0, outcome.err
    assert "after step 18" in outcome.err


def test_two_processes_train_as_one_and_evaluate_exactly(config, tool, start, tmp_path):
    """Without dropout and mixing, the same global batch gives the same run up to rounding."""
    plain = ["MODEL.DROP_PATH=0.0", "AUG.MIXUP=0", "AUG.CUTMIX=0"]
    # torchrun gives each process one thread; the order of sums differs, hence the tolerance.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start(launcher, "train", config, "--output", tmp_path / "two", "--device", "cpu", "--set", *plain)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert tool("train", config, "--output", tmp_path / "one", "--set", *plain).code == 0
    one, two = (torch.load(tmp_path / name / "last.pt") for name in ("one", "two"))
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=1e-3, atol=1e-4)

    process = start(launcher, "evaluate", config, tmp_path / "two/last.pt", "--output", tmp_path / "eval")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert tool("evaluate", config, tmp_path / "two/last.pt", "--output", tmp_path / "eval1").code == 0
    many, alone = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("eval", "eval1"))
    assert many["count"] == alone["count"] == 20
    assert many["metrics"]["top1"] == alone["metrics"]["top1"] == two["history"][-1]["top1"]
    assert many["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(config, tool, tmp_path):
    hot = ["TRAIN.LR=100", "TRAIN.CLIP_GRAD=null", "TRAIN.OPTIMIZER=sgd", "TRAIN.WARMUP_EPOCHS=1", "TRAIN.EPOCHS=9"]
    outcome = tool("train", config, "--output", tmp_path / "run", "--set", *hot)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("error: loss is nan at step")
    assert "learning rate" in outcome.err
    saved = torch.load(tmp_path / "run/last.pt")["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_a_published_checkpoint_is_evaluated_with_its_average(trained, config, tool, tmp_path):
    """timm 0.4's layout: an argparse.Namespace, numpy scalars, module. prefixes, an EMA entry."""
    ours = torch.load(trained / "last.pt")
    published = {
        "epoch": 299,
        "arch": "elsa_swin_nano",
        "state_dict": {f"module.{name}": torch.zeros_like(tensor) for name, tensor in ours["state_dict"].items()},
        "state_dict_ema": {f"module.{name}": tensor for name, tensor in ours["state_dict_ema"].items()},
        "optimizer": {},
        "args": argparse.Namespace(lr=1e-3, model="elsa_swin_nano"),
        "version": 2,
        "metric": np.float64(82.7),
    }
    torch.save(published, tmp_path / "published.pth.tar")
    outcome = tool("evaluate", config, tmp_path / "published.pth.tar", "--output", tmp_path / "eval")
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert results["checkpoint"]["weights"] == "state_dict_ema"
    assert results["metrics"]["top1"] == ours["history"][-1]["top1"]


def test_training_can_start_from_weights_with_another_head(trained, config, tool, tmp_path):
    weights = shutil.copy(trained / "last.safetensors", tmp_path / "start.safetensors")
    start_from = [f"MODEL.PRETRAINED={weights}"]
    outcome = tool("train", config, "--output", tmp_path / "tuned", "--set", *start_from,
                   "MODEL.PRETRAINED_IGNORE=['head.*']", "TRAIN.EPOCHS=2")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "kept as initialised: head.bias, head.weight" in outcome.err

    weights.unlink()  # what a run started from is not needed to go on with it
    options = ["--set", *start_from, "MODEL.PRETRAINED_IGNORE=['head.*']", "TRAIN.EPOCHS=2"]
    resumed = tool("train", config, "--output", tmp_path / "tuned", "--resume", "auto", *options)
    assert resumed.code == 0, resumed.err
    assert tool("evaluate", config, tmp_path / "tuned/last.pt", "--output", tmp_path / "eval", *options).code == 0


@pytest.mark.parametrize(
    "options",
    [
        ["AMP.ENABLED=true", "AMP.DTYPE=bfloat16"],
        ["MODEL.GRAD_CHECKPOINTING=true"],
        ["TRAIN.ACCUM=2", "DATA.WORKERS=2"],
        ["TRAIN.COMPILE=true"],
    ],
    ids=["bfloat16", "checkpointing", "accumulation", "compiled"],
)
def test_ways_of_computing_give_about_the_same_run(trained, config, tool, tmp_path, options):
    same = ["AUG.MIXUP=0", "AUG.CUTMIX=0", "MODEL.DROP_PATH=0"]
    for name, further in (("plain", []), ("other", options)):
        assert tool("train", config, "--output", tmp_path / name, "--set", *same, *further).code == 0
    plain, other = (torch.load(tmp_path / name / "last.pt")["history"] for name in ("plain", "other"))
    for a, b in zip(plain, other, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.02)


def test_a_plain_timm_model_trains_under_the_same_recipe(config, tool, tmp_path):
    outcome = tool("train", config, "--output", tmp_path / "run", "--set", "MODEL.NAME=swin_tiny_patch4_window7_224",
                   "MODEL.KWARGS={embed_dim: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1], window_size: 4}",
                   "TRAIN.EPOCHS=2")  # fmt: skip
    assert outcome.code == 0, outcome.err


def test_unreadable_images_are_skipped_counted_and_bounded(config, tool, tmp_path, images):
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    (broken / "val/class1/3.png").write_bytes(b"no image")
    (broken / "train/class2/0.png").write_bytes((broken / "train/class2/0.png").read_bytes()[:60])
    options = ["--set", f"DATA.ROOT={broken}", "TRAIN.EPOCHS=2"]
    outcome = tool("train", config, "--output", tmp_path / "run", *options)
    assert outcome.code == 0, outcome.err
    assert "val/class1/3.png cannot be read: " in outcome.err
    assert tool("evaluate", config, tmp_path / "run/last.pt", "--output", tmp_path / "eval", *options).code == 0
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert results["count"] == 19
    assert [name.endswith("val/class1/3.png") for name in results["skipped"]] == [True]
    bounded = tool("evaluate", config, tmp_path / "run/last.pt", *options, "DATA.MAX_BAD=0")
    assert bounded.code == 2
    assert "val/class1/3.png" in bounded.err.splitlines()[-1]


def test_images_of_ones_own_are_classified(trained, config, tool, tmp_path, images):
    """The same answers as the evaluator's; class names come with the checkpoint; broken files are named."""
    folder = tmp_path / "mine"
    shutil.copytree(images / "val", folder)
    (folder / "broken.png").write_bytes(b"no image")
    outcome = tool("predict", config, trained / "last.pt", folder, "--output", tmp_path / "out", "--top", 2)
    assert outcome.code == 0, outcome.err
    assert "broken.png cannot be read: " in outcome.err
    every = json.loads((tmp_path / "out/predictions.json").read_text())
    rows = [row for row in every if "top" in row]
    (broken,) = [row for row in every if "top" not in row]
    assert broken["image"] == str(folder / "broken.png")
    assert broken["error"]
    hits = sum(row["top"][0]["class"] in row["image"] for row in rows)
    last = json.loads((trained / "summary.json").read_text())["last"]
    assert 100 * hits / len(rows) == last["top1"]
    assert all(len(row["top"]) == 2 and row["top"][0]["confidence"] >= row["top"][1]["confidence"] for row in rows)
    assert ink(tmp_path / "out/predictions.png") > 0.3
