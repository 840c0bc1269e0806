"""What a run shows beside its log, on request: images, a profile, trackers, hyper-parameters; it trains as without."""

from __future__ import annotations

import gzip
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from guarantees import assert_same_run, records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from elsa.engine import Precision, TokenLabelStep, TrainStep, load_config
from elsa.tools.tasks.gallery import ClassifierGallery

FIRST = {"classification": [1, 7, 13], "detection": [1, 5], "segmentation": [1, 5]}  # after the start, each evaluation
EVALUATED = {"classification": [6, 12, 18], "detection": [4, 8], "segmentation": [4, 6]}
FOUR_STEPS = ("TRAIN.EPOCHS=2", "DATA.BATCH=24")


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
    assert tool("train", config, "--output", folder, "--set", *FOUR_STEPS).code == 0
    shown = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("final/best/top1")
    (folder / "summary.json").unlink()
    assert tool("train", config, "--output", folder, "--resume", "auto", "--set", *FOUR_STEPS).code == 0
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


def test_a_batch_is_shown_as_the_model_gets_it(tool, config, monkeypatch, tmp_path):
    """Mixed with the step's own random numbers."""
    shown, given = [], []
    mixed, call = ClassifierGallery._mixed, TrainStep.loss

    def note_mixed(self, step, batch):
        images, texts = mixed(self, step, batch)
        shown.append(images)
        assert all(text.endswith("%)") for text in texts)
        return images, texts

    def note_given(self, batch):
        hook = self.source.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0].clone()))
        loss = call(self, batch)
        hook.remove()
        return loss

    monkeypatch.setattr(ClassifierGallery, "_mixed", note_mixed)
    monkeypatch.setattr(TrainStep, "loss", note_given)
    config.write_text(config.read_text().replace("TENSORBOARD: false", "IMAGES: 1"))
    assert tool("train", config, "--output", tmp_path / "run", "--set", *FOUR_STEPS).code == 0
    del given[0]  # its operations were counted
    assert len(given) == 4 and len(shown) == 2
    assert torch.equal(shown[0], given[0]) and torch.equal(shown[1], given[2])


def test_pixels_are_those_of_the_image(root):
    config = load_config(root / "configs/classification/elsa_swin_tiny.yaml", ["LOG.IMAGES=1"])
    gallery = ClassifierGallery(config, [], ["a"], Precision("cpu", None))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    mean, std = np.array(config.DATA.MEAN), np.array(config.DATA.STD)
    normalised = torch.from_numpy((pixels / 255 - mean) / std).permute(2, 0, 1)
    assert np.array_equal(np.asarray(gallery._pixels(normalised)), pixels)


def test_mix_token_shows_what_the_exchanged_tokens_are_made_of(root):
    config = load_config(root / "configs/classification/elsa_swin_tiny.yaml", ["LOG.IMAGES=2"])
    gallery = ClassifierGallery(config, [], ["cat", "dog"], Precision("cpu", None))
    step = TokenLabelStep.__new__(TokenLabelStep)
    step.draw_box, step.source = lambda: torch.tensor([0, 1, 1, 2]), SimpleNamespace(token_stride=4)
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    batch = SimpleNamespace(images=images, targets=torch.tensor([0, 1]))
    images, texts = gallery._mixed(step, batch)
    assert texts == ["cat\ndog in the box", "dog\ncat in the box"]
    assert images[0, 0].tolist() == [[0.0] * 4 + [1.0] * 4] * 4 + [[0.0] * 8] * 4
    assert torch.equal(images[1], 1 - images[0])
