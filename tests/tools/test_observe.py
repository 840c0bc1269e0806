"""What a run shows beside its log, on request: images, a profile, trackers, hyper-parameters; it trains as without."""

from __future__ import annotations

import gzip
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from guarantees import assert_same_run, records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FIRST = {"classification": [1, 7, 13], "detection": [1, 5], "segmentation": [1, 5]}  # after the start, each evaluation
EVALUATED = {"classification": [6, 12, 18], "detection": [4, 8], "segmentation": [4, 6]}


@pytest.fixture
def trackio(monkeypatch) -> list[tuple]:
    """What a stand-in was told."""
    told: list[tuple] = []
    module = ModuleType("trackio")
    module.__spec__ = ModuleSpec("trackio", None, origin="stand-in")
    module.init = lambda **given: told.append(("init", given["name"]))
    module.log = lambda numbers, step=None: told.append(("log", step, numbers))
    module.finish = lambda: told.append(("finish",))
    monkeypatch.setitem(sys.modules, "trackio", module)
    return told


def settings(task, **values) -> list[str]:
    prefix = (lambda name: f"LOG.{name.upper()}") if task.task == "classification" else (lambda name: f"run.{name}")
    return ["--set", *(f"{prefix(name)}={value}" for name, value in values.items())]


def test_a_run_that_shows_everything_trains_the_same(task, tool, whole, trackio, tmp_path):
    """Bit for bit; TensorBoard has one run, the tracker each number once, the profile its files."""
    folder = tmp_path / "run"
    shown = settings(task, images=2, tensorboard=True, trackers="['trackio']")
    outcome = tool("train", task.recipe, "--output", folder, *task.set(save=2), *shown, "--profile", "2:2")
    assert outcome.code == 0, outcome.err
    assert_same_run(whole, folder)

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("train/batch")] == FIRST[task.task]
    assert [event.step for event in events.Images("eval/predictions")] == EVALUATED[task.task]
    assert all(event.width > 300 and event.height > 100 for event in events.Images("train/batch"))
    assert "_hparams_/session_start_info" in events.summary_metadata
    best = json.loads((folder / "summary.json").read_text())["best"][task.metric]
    assert events.Scalars(f"final/best/{task.metric}")[0].value == pytest.approx(best)
    assert [path.is_file() for path in (folder / "tensorboard").iterdir()] == [True]

    steps = [entry[1] for entry in trackio if entry[0] == "log" and entry[1] is not None]
    assert steps == [record["step"] for line in (folder / "log.jsonl").open() if (record := json.loads(line))]
    assert trackio[0][0] == "init" and trackio[-1] == ("finish",)
    assert trackio[-2][2][f"summary/best/{task.metric}"] == best

    profile = folder / "profile"
    with gzip.open(profile / "steps2-2.rank0.pt.trace.json.gz", "rt") as stream:
        trace = stream.read()
    names = ("load data", "forward", "backward", "update", "elsa::attention_forward")
    assert [name for name in names if f'"name": "{name}"' not in trace] == []
    assert "aten::mm" in (profile / "steps2-2.rank0.operators.txt").read_text()


def test_a_resumed_run_goes_on_in_tensorboard_and_trackers(tool, config, trackio, tmp_path):
    config.write_text(config.read_text().replace("TENSORBOARD: false", "TRACKERS: [trackio], SAVE_STEPS: 2"))
    folder = tmp_path / "run"
    assert tool("train", config, "--output", folder).code == 0
    shown = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("final/best/top1")
    (folder / "summary.json").unlink()
    assert tool("train", config, "--output", folder, "--resume", "auto").code == 0
    names = [entry[1] for entry in trackio if entry[0] == "init"]
    assert len(names) == 2 and len(set(names)) == 1 and names[0].startswith("run-")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {event.value for event in events.Scalars("final/best/top1")} == {event.value for event in shown}
    assert all(path.is_file() for path in (folder / "tensorboard").iterdir())


def test_log_lines_tell_shares_and_use(whole, task):
    lines = records(whole, "train")
    for line in lines:
        assert line["data_wait"] + line["communication"] + line["compute"] == pytest.approx(1)
        assert 0 <= line["data_wait"] <= 1 and line["images_per_s"] > 0
        assert line["mfu"] > 0 and line["tflops_per_gpu"] > 0
    elapsed = [line["elapsed_s"] for line in lines]
    assert elapsed == sorted(elapsed) and elapsed[0] > 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--set", "LOG.IMAGES=4"], ["LOG.IMAGES 4 has no effect unless LOG.TENSORBOARD is true"]),
        (["--set", "LOG.TRACKERS=[wand]"], ["LOG.TRACKERS", "must be one of wandb, trackio", "did you mean wandb?"]),
        (["--profile", "4:9"], ["--profile 4:9: an evaluation comes after step 6 of this launch"]),
        (["--profile", "9"], ["--profile must be FIRST:LAST, steps of this launch such as 10:15, got '9'"]),
    ],
)
def test_what_would_show_nothing_is_refused(refused, tool, config, tmp_path, arguments, parts):
    refused(tool("train", config, "--output", tmp_path / "run", *arguments), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("run.trackers=['wand']", ["run.trackers.0", "must be one of wandb, trackio", "did you mean wandb?"]),
        ("run.trackers=wandb", ["run.trackers must be a list of strings", "'wandb'"]),
        ("run.images=100", ["run.images must be between 0 and 64"]),
    ],
)
def test_the_same_of_detectors(refused, tool, detector, tmp_path, override, parts):
    refused(tool("train", detector, "--output", tmp_path / "run", "--set", override), *parts)
    assert not (tmp_path / "run").exists()
