"""A training ends where its metric has not become better for so many epochs: in each task, interrupted or not."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest
from guarantees import assert_same_run, content, records

from elsa.tools.tasks import training

# Settings of 6 epochs or more that end after two without a better result, and the step at which the values below end
# them. Classification and detection evaluate after each epoch, segmentation every 4 steps, of which 3 are an epoch.
SETTINGS = {
    "classification": (["TRAIN.EARLY_STOP=2", "TRAIN.EPOCHS=6"], 24, 12),
    "detection": (["run.early_stop=2", "train_cfg.max_epochs=6", "train_cfg.val_interval=1"], 16, 8),
    "segmentation": (["run.early_stop=2", "train_cfg.max_iters=24", "train_cfg.val_interval=4"], 16, 8),
}
VALUES = (0.1, 0.3, 0.3, 0.2, 0.9, 0.9)  # of the evaluations; as good as the best is not better


@pytest.fixture
def scripted(monkeypatch):
    """The metric of each evaluation is one of VALUES."""
    evaluated = training._evaluated

    def told(parts, counted, state, logbook):
        result = evaluated(parts, counted, state, logbook)
        return replace(result, numbers={**result.numbers, parts.metric: VALUES[len(state.history)]})

    monkeypatch.setattr(training, "_evaluated", told)


def test_it_ends_keeps_the_best_and_goes_on_exactly(task, scripted, tool, tmp_path, signal_at):
    settings, end, best = SETTINGS[task.task]
    arguments = ("train", task.recipe, "--resume", "auto", "--set", *settings)
    outcome = tool(*arguments, "--output", tmp_path / "whole")
    assert outcome.code == 0, outcome.err
    total = {"classification": 36}.get(task.task, 24)
    assert f"ended early, after {end} of {total} steps: no better {task.metric} for" in outcome.err
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert (summary["stopped_early"], summary["iterations"]) == (True, end)
    assert (summary["best"][task.metric], summary["best"]["iteration"]) == (0.3, best)
    assert content(tmp_path / "whole/best.pt")["step"] == best

    again = tool(*arguments, "--output", tmp_path / "whole")
    assert again.code == 0, again.err
    assert records(tmp_path / "whole", "train")[-1]["step"] == content(tmp_path / "whole/last.pt")["step"] == end

    signal_at(best + 1, signal.SIGTERM)  # the epochs that were no better are counted over the interruption
    assert "stopped after step" in tool(*arguments, "--output", tmp_path / "run").err
    signal_at()
    assert tool(*arguments, "--output", tmp_path / "run").code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_with_another_patience_it_goes_on(config, scripted, tool, tmp_path, signal_at):
    settings = ["--output", tmp_path / "run", "--resume", "auto", "--set", "TRAIN.EPOCHS=6"]
    assert tool("train", config, *settings, "TRAIN.EARLY_STOP=1").code == 0
    assert content(tmp_path / "run/last.pt")["step"] == 18
    signal_at(20, signal.SIGTERM)
    assert tool("train", config, *settings, "TRAIN.EARLY_STOP=0").code == 0
    assert not (tmp_path / "run/summary.json").exists(), "which tells launchers that nothing is left to do"
    signal_at()
    assert tool("train", config, *settings, "TRAIN.EARLY_STOP=0").code == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["stopped_early"], summary["iterations"], summary["best"]["top1"]) == (False, 36, 0.9)


def test_two_processes_end_alike(config, launch, tmp_path):
    still = ["TRAIN.LR=1e-12", "TRAIN.WARMUP_LR=0", "TRAIN.MIN_LR=0"]  # so that the first evaluation is the best
    settings = ["--set", "TRAIN.EPOCHS=6", "TRAIN.EARLY_STOP=2", *still]
    both = launch("none", "train", config, "--output", tmp_path / "run", *settings, processes=2)
    assert both.wait(300) == [0, 0], both.said() + both.said(1)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["stopped_early"], summary["iterations"], summary["best"]["epoch"]) == (True, 18, 1)
