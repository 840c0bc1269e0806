"""A guarantee is a test over all tasks: several processes and micro-batches train and evaluate as one does."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from guarantees import assert_same_run, content, is_finite, left_over, records, weights


def assert_close(one, other, start) -> None:
    """The weights differ by far less than the training has changed them: by rounding, and by a ReLU or two that switch
    in one of the runs, as their input is zero to rounding."""
    moved = weights(one / "last.pt") - weights(start / "last.pt")
    apart = weights(one / "last.pt") - weights(other / "last.pt")
    assert apart.norm() < 1e-4 * moved.norm(), (apart.norm(), moved.norm())
    rates = [{record["step"]: record["lr"] for record in records(folder, "train")} for folder in (one, other)]
    shared = rates[0].keys() & rates[1].keys()
    assert len(shared) >= 3
    assert {step: rates[0][step] for step in shared} == {step: rates[1][step] for step in shared}
    evaluated = [[record["step"] for record in records(folder, "eval")] for folder in (one, other)]
    assert evaluated[0] == evaluated[1]


def test_processes_and_micro_batches_divide_the_work_and_change_nothing(linear, launch, tmp_path):
    """One process; two micro-batches; one process for a step, then two, then one again: to rounding the same weights,
    and exactly the same augmented images in each step. In the first step of the first run the start is seen."""
    train = ("train", linear.recipe, "--output")
    ends = {}
    for name, options in (("alone", []), ("halves", linear.set(accumulate=2))):
        one = launch("none", *train, tmp_path / name, *options)
        assert one.wait() == [0], one.said()
        ends[name] = one.seen()
    start = launch("stop:1", *train, tmp_path / "start")
    assert start.wait() == [0], start.said()

    changing = {}
    for fault, processes in (("stop:1", 1), ("stop:3", 2), ("none", 1)):
        part = launch(fault, *train, tmp_path / "changing", "--resume", "auto", processes=processes)
        assert part.wait() == [0] * processes, part.said()
        assert f"= {processes} processes × 1 accumulated" in part.said()
        assert not changing.keys() & part.seen().keys(), "no step twice"
        changing |= part.seen()
    assert content(tmp_path / "start" / "last.pt")["step"] == 1
    assert ends["alone"] == ends["halves"] == changing
    assert len({tuple(images) for images in changing.values()}) > 3, "images differ from step to step"
    for other in ("halves", "changing"):
        assert_close(tmp_path / "alone", tmp_path / other, tmp_path / "start")
        assert left_over(tmp_path / other) == []


def test_the_saved_recipe_is_the_same_run(linear, tool, tmp_path):
    """With two accumulated micro-batches; what the second run saved is trained from again."""
    before = tmp_path / "first"
    assert tool("train", linear.recipe, "--output", before, *linear.set(accumulate=2, save=2)).code == 0
    name = linear.saved_recipe
    for again in ("second", "third"):
        outcome = tool("train", before / name, "--output", tmp_path / again)
        assert outcome.code == 0, outcome.err
        for file in (name, "plan.json"):
            assert (tmp_path / again / file).read_text() == (before / file).read_text()
        assert_same_run(before, tmp_path / again)
        before = tmp_path / again


@pytest.mark.parametrize(("what", "most"), [("losses", 0), ("gradients", 1)])
def test_what_is_never_finite_again_in_one_process_stops_all(linear, launch, tmp_path, what, most):
    """At once where no step may be skipped, else after those that may: the same step in all processes."""
    began, run = time.monotonic(), tmp_path / "run"
    options = linear.set(save=2, skipped=most)
    both = launch(f"{what}:4@1", "train", linear.recipe, "--output", run, *options, processes=2)
    assert both.wait() == [1, 1], both.said() + both.said(1)
    assert time.monotonic() - began < 60
    for rank, name in ((0, "error: "), (1, "[rank 1] error: ")):
        told = [line for line in both.said(rank).splitlines() if line.startswith(name)]
        assert len(told) == 1, both.said(rank)
        assert f" is nan at step {4 + most} " in told[0]
        assert ("the 2nd such step in a row" in told[0]) == bool(most)
        assert "gradient norm nan, not finite in " in told[0]
        assert f"the last good checkpoint is {run / 'last.pt'}" in told[0]
        assert "Traceback" not in both.said(rank)
        assert "Warning" not in both.said(rank)
    assert is_finite(run / "last.pt")
    assert content(run / "last.pt")["step"] == 4 if most else content(run / "last.pt")["step"] < 4
    assert content(run / "last.pt")["skipped"] == most


def test_a_step_that_is_not_finite_in_one_process_is_left_out_by_all(linear, launch, tool, tmp_path):
    """With accumulated micro-batches, of which each is spoilt. The weights are those of one process that leaves out the
    same step, a run that was interrupted goes on to the same end, and log and summary have the number."""
    train = ("train", linear.recipe, *linear.set(save=2), "--output")
    alone = launch("loss:4", *train, tmp_path / "alone")
    accumulate = linear.set(accumulate=2) if linear.task == "classification" else []
    both = launch("loss:4@1", *train, tmp_path / "both", *accumulate, processes=2)
    start = launch("stop:1", *train, tmp_path / "start")
    assert [alone.wait(), both.wait(), start.wait()] == [[0], [0, 0], [0]], alone.said() + both.said() + both.said(1)
    assert_close(tmp_path / "alone", tmp_path / "both", tmp_path / "start")
    assert "skipped" not in both.said(1), "one process speaks for all"
    for one in (alone, both):
        told = [line for line in one.said().splitlines() if "skipped step" in line]
        assert len(told) == 1
        assert told[0].startswith("skipped step 4 (epoch ") and "(1 so far, 1 in a row, 10 at most)" in told[0]
    for name in ("alone", "both"):
        counts = {record["step"]: record["skipped"] for record in records(tmp_path / name, "train")}
        assert counts[2] == 0 and counts[4] == counts[max(counts)] == 1
        assert json.loads((tmp_path / name / "summary.json").read_text())["skipped"] == 1
        history = content(tmp_path / name / "last.pt")["history"]
        assert all(entry["train_loss"] < float("inf") for entry in history), "of the steps that have a loss"

    for fault in ("stop:3", "loss:1"):  # to step 3; the first of the next launch is the fourth
        part = launch(fault, *train, tmp_path / "start", "--resume", "auto")
        assert part.wait() == [0], part.said()
    assert_same_run(tmp_path / "alone", tmp_path / "start")


@pytest.mark.parametrize("step", [3, "last"])
def test_weights_that_are_not_finite_are_never_saved(task, whole, launch, tmp_path, step):
    """Loss and gradient of the step were finite, the update was not: within an epoch, and at the very end."""
    run = tmp_path / "run"
    number = content(whole / "last.pt")["step"] if step == "last" else step
    one = launch(f"update:{number}", "train", task.recipe, "--output", run, *task.set(save=2))
    assert one.wait() == [1], one.said()
    last = one.said().splitlines()[-1]
    assert last.startswith("error: ")
    assert "the last good checkpoint is" in last
    assert "finished" not in one.said()
    assert {"last.pt", "previous.pt"} & {path.name for path in run.glob("*.pt")}
    assert all(is_finite(path) for path in run.glob("*.pt"))
    assert left_over(run) == []


def test_evaluation_counts_every_image_once_for_any_number_of_processes(task, whole, tool, launch, tmp_path):
    arguments = ("evaluate", task.recipe, whole / "last.pt", *task.single, "--output")
    assert tool(*arguments, tmp_path / "1").code == 0
    for processes in (2, 3):
        several = launch("none", *arguments, tmp_path / str(processes), processes=processes)
        assert several.wait() == [0] * processes, several.said()
    found = {count: json.loads((tmp_path / str(count) / "results.json").read_text()) for count in (1, 2, 3)}
    logged = content(whole / "last.pt")["history"][-1]
    for results in found.values():
        assert results["count"] == task.images
        if "loss" in results["metrics"]:  # a sum in another order
            assert results["metrics"].pop("loss") == pytest.approx(logged["loss"], rel=1e-6)
        assert results["metrics"] == found[1]["metrics"]
        assert results["metrics"][task.metric] == logged[task.metric] > 0
    shared = found[1]["metrics"].keys() & logged.keys()
    assert {name: found[1]["metrics"][name] for name in shared} == {name: logged[name] for name in shared}


@pytest.mark.parametrize("task", ["detection", "segmentation"], indirect=True)
def test_an_image_that_cannot_be_read_is_left_out_by_any_number_of_processes(task, whole, tool, launch, tmp_path):
    data = shutil.copytree(task.data, tmp_path / "data")
    broken = sorted(path for path in data.rglob("*.jpg") if "val" in str(path.relative_to(data)))[1]
    broken.write_text("no image")
    arguments = ("evaluate", task.recipe, whole / "last.pt", *task.single, *task.set(data=data), "--output")
    assert tool(*arguments, tmp_path / "1").code == 0
    for processes in (2, 3):
        several = launch("none", *arguments, tmp_path / str(processes), processes=processes)
        assert several.wait() == [0] * processes, several.said()
        assert several.said().count(f"left out of the evaluation: {broken}") == 1
    found = [json.loads((tmp_path / str(count) / "results.json").read_text()) for count in (1, 2, 3)]
    for results in found:
        assert results["count"] == task.images - 1
        assert len(results["skipped"]) == 1 and str(broken) in results["skipped"][0]
        assert results["metrics"] == found[0]["metrics"]
    outcome = tool(*arguments, tmp_path / "none", "--set", "run.max_bad=0")
    assert outcome.code == 2 and str(broken) in outcome.err.splitlines()[-1]


def test_what_two_processes_evaluate_is_what_they_save(task, tool, launch, tmp_path):
    """Each process has its own batch statistics; those of the main one are saved, and evaluated by all."""
    run = tmp_path / "run"
    more = ["global_batch=4"] if task.task == "segmentation" else []  # batch norm of a 1×1 map needs two images
    both = launch("none", "train", task.recipe, "--output", run, *task.set(save=2), *more, processes=2)
    assert both.wait() == [0, 0], both.said() + both.said(1)
    assert both.said(1) == "", "one process speaks for all"
    outcome = tool("evaluate", task.recipe, run / "last.pt", "--output", tmp_path / "eval", *task.single)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "eval" / "results.json").read_text())["metrics"]
    logged = content(run / "last.pt")["history"][-1]
    shared = [name for name in found.keys() & logged.keys() if name != "loss" and found[name] is not None]
    assert task.metric in shared
    assert {name: found[name] for name in shared} == {name: logged[name] for name in shared}
