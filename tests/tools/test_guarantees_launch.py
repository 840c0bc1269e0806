"""A guarantee is a test over all tasks: what becomes of the others where a process is lost, stopped or mistaken."""

from __future__ import annotations

import os
import signal

import pytest
from guarantees import content, left_over

from elsa.engine import StopRequest, Trainer


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_every_verb_refuses_a_launcher_that_tells_a_part(verb, tool, refused, config, images, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (best := tmp_path / "best.pt").touch()
    given = {"train": [], "evaluate": [best], "predict": [best, images / "val"]}[verb]
    refused(tool(verb, config, *given, "--output", tmp_path / "out"), "RANK is not set, but WORLD_SIZE is")
    assert not (tmp_path / "out").exists()


def test_a_process_that_is_lost_is_named_by_the_others(task, launch, tmp_path):
    """Killed in a step: the others end at once, in one line, with what was saved before."""
    run = tmp_path / "run"
    more = ["global_batch=4"] if task.task == "segmentation" else []  # batch norm of a 1×1 map needs two images
    both = launch("kill:4@1", "train", task.recipe, "--output", run, *task.set(save=2), *more, processes=2)
    assert both.wait() == [1, -signal.SIGKILL], both.said()
    assert both.said().splitlines()[-1] == (
        f"error: lost process 1 of 2: it was killed or crashed; the last good checkpoint is {run / 'last.pt'}"
    )
    assert "Traceback" not in both.said()
    assert 2 <= content(run / "last.pt")["step"] < 4


def test_the_mistake_of_one_process_is_told_by_all(config, images, launch, tmp_path):
    """The data are missing for the second process alone, as on a node without the disk; then for the first."""
    for sufferer, name in ((1, "process 1 ended: "), (0, "the main process cannot go on: ")):
        both = launch(f"blind:1@{sufferer}", "train", config, "--output", tmp_path / "run", processes=2)
        assert both.wait(60) == [2, 2], both.said() + both.said(1)
        mistake = f"DATA.ROOT {images}-gone does not exist"
        for rank in range(2):
            sign = "[rank 1] " if rank else ""
            told = f"{sign}error: {'' if rank == sufferer else name}{mistake}"
            assert both.said(rank).splitlines()[-1].startswith(told)
            assert "Traceback" not in both.said(rank)
    assert not (tmp_path / "run").exists()


def test_predict_is_for_one_process(config, images, launch, tmp_path):
    (best := tmp_path / "best.pt").touch()
    both = launch("none:1", "predict", config, best, images / "val", "--output", tmp_path / "out", processes=2)
    assert both.wait(60) == [2, 2], both.said()
    for rank, sign in ((0, ""), (1, "[rank 1] ")):
        told = f"{sign}error: predict works in one process, and is started 2 times: no torchrun\n"
        assert both.said(rank) == told
    assert not (tmp_path / "out").exists()


def test_a_signal_to_every_process_of_a_job_saves(task, launch, tmp_path):
    """To each process by itself, loader processes included, as a scheduler sends it."""
    run = tmp_path / "run"
    one = launch("job:3", "train", task.recipe, "--output", run, *task.set(save=0, workers=2))
    assert one.wait() == [0], one.said()
    assert f"stopped after step {content(run / 'last.pt')['step']} and saved" in one.said()
    assert "Traceback" not in one.said()
    assert left_over(run) == []


def test_what_torchrun_starts_again_goes_on(config, tool, tmp_path, signal_at, monkeypatch):
    """The same command, --overwrite or another run's checkpoint included, began the run that is there."""
    old = tmp_path / "old"
    signal_at(1, signal.SIGTERM)
    assert tool("train", config, "--output", old).code == 0
    for name, own in (("over", ["--overwrite"]), ("path", ["--resume", old / "last.pt"])):
        arguments = ("train", config, "--output", tmp_path / name, *own)
        signal_at(4, signal.SIGTERM)
        assert tool(*arguments).code == 0
        signal_at()
        with monkeypatch.context() as started:
            started.setenv("TORCHELASTIC_RESTART_COUNT", "1")
            outcome = tool(*arguments)
        assert outcome.code == 0, outcome.err
        assert "resumed after step 5" in outcome.err
        assert tool(*arguments[:4]).code == 2, "only then"


def test_the_end_of_the_terminal_stops_a_run_and_nohup_does_not(config, tool, tmp_path, signal_at):
    signal_at(2, signal.SIGHUP)
    outcome = tool("train", config, "--output", tmp_path / "heard")
    assert outcome.code == 0
    assert "stopped after step 3 and saved; go on with --resume auto" in outcome.err
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        outcome = tool("train", config, "--output", tmp_path / "ignored", "--set", "TRAIN.EPOCHS=2")
    finally:
        signal.signal(signal.SIGHUP, old)
    assert outcome.code == 0
    assert "finished" in outcome.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_again_stops_at_once_but_not_its_echo(number, monkeypatch):
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # as a launcher forwards it
        assert stop.name == number.name
        monkeypatch.setattr(StopRequest, "GRACE", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_a_finished_epoch_is_saved_before_its_evaluation(task, tool, tmp_path, monkeypatch):
    """So that a scheduler which does not wait for the evaluation to end takes nothing."""
    saved = []

    def evaluated(self):
        saved.append(content(self.checkpoints.last())["step"] == self.state.step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "evaluate_and_save", evaluated)
    assert tool("train", task.recipe, "--output", tmp_path / "run").code == 130
    assert saved == [True]
