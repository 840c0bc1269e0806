"""A guarantee is a test over all tasks: what a run promises when its process is killed or asked to stop."""

from __future__ import annotations

import shutil
import signal
import time

from guarantees import assert_same_run, content, left_over

from elsa.engine import RunFolder

# Moments of a run that saves every 2 steps, in an order in which each comes.
MOMENTS = (
    "kill:1",  # before anything was saved
    "kill:3",  # between two saves
    "write:last.pt:1",  # half of the file is written
    "evaluate:1",
    "rename:best.pt:1",
    "rename:best.safetensors:1",  # between best.pt and last.pt
    "write:last.pt:2",
    "rename:previous.pt:1",
    "rename:last.pt:1",
    "evaluate:1",
)


def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(task, whole, launch, tool, tmp_path):
    run = tmp_path / "run"
    arguments = ("train", task.recipe, "--output", run, "--resume", "auto", *task.set(save=2))
    for moment in MOMENTS:
        killed = launch(moment, *arguments, *task.set(workers=int(moment == "kill:3")))
        assert killed.wait() == [-signal.SIGKILL], (moment, killed.said())
    assert left_over(run), "a killed save leaves something"
    outcome = tool(*arguments)
    assert outcome.code == 0, outcome.err
    assert_same_run(whole, run)


def test_a_folder_belongs_to_one_run_until_that_has_ended(task, whole, launch, tool, refused, tmp_path):
    """A fresh run, then a resumed one, hangs in a step and is killed: then the folder is free, and the run goes on."""
    run = tmp_path / "run"
    arguments = ("train", task.recipe, "--output", run, *task.set(save=2))
    auto = ["--resume", "auto"]
    for others in ([[], auto, ["--overwrite"]], [auto]):
        living = launch("hang:3", *arguments, *auto)
        deadline = time.monotonic() + 120
        while "hangs" not in living.said():
            assert living.processes[0].is_alive() and time.monotonic() < deadline, living.said()
            time.sleep(0.1)
        for options in others:
            outcome = tool(*arguments, *options)
            refused(outcome, "in use by a run that is still alive", str(living.processes[0].pid))
            assert len(outcome.err.splitlines()) == 1
        several = launch("none", *arguments, *auto, processes=2)
        assert several.wait() == [2, 2], several.said()
        assert "in use by a run that is still alive" in several.said()
        assert len((several.said() + several.said(1)).splitlines()) == 2, "a line each"
        living.kill()
    outcome = tool(*arguments, *auto)
    assert outcome.code == 0, outcome.err
    assert "resumed after step 2" in outcome.err
    assert_same_run(whole, run)


def test_signals_stop_it_within_an_epoch_and_it_goes_on_bit_for_bit(task, whole, tool, tmp_path, signal_at):
    """SIGTERM, then SIGINT, in runs with different numbers of loader processes."""
    run, before = tmp_path / "run", None
    for step, number, workers in ((2, signal.SIGTERM, 0), (5, signal.SIGINT, 2), (None, None, 1)):
        signal_at(*([step - 1, number] if step else []))
        outcome = tool("train", task.recipe, "--output", run, "--resume", "auto", *task.set(save=0, workers=workers))
        assert outcome.code == 0, outcome.err
        if before:
            assert f"resumed after step {before}: " in outcome.err
        before = step
        if step:
            assert f"stopped after step {step} and saved; go on with --resume auto" in outcome.err
            assert content(run / "last.pt")["step"] == step
            assert left_over(run) == []
    assert_same_run(whole, run)


def test_a_folder_that_another_run_took_meanwhile_is_left_alone(task, whole, tool, refused, tmp_path, monkeypatch):
    """Two launches at once into a folder that is not there yet: one has ended before the other has built its model."""
    find, run = RunFolder.find, tmp_path / "run"

    def found(self, recipe):
        nothing = find(self, recipe)
        shutil.copytree(whole, run)
        return nothing

    monkeypatch.setattr(RunFolder, "find", found)
    outcome = tool("train", task.recipe, "--output", run, *task.set(save=2))
    refused(outcome, f"{run} holds a run that began meanwhile")
    assert_same_run(whole, run)
