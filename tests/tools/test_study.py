"""elsa study: runs of variants × seeds, what is finished stays, and what the numbers allow to say."""

from __future__ import annotations

import csv
import json
import math
import signal
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from elsa.tools.tasks.command import TASKS, read, shipped_recipes
from elsa.tools.tasks.study.plan import SEED, Study, find_study, read_study, shipped_studies
from elsa.tools.tasks.study.runs import Planned, command, plan_runs
from elsa.tools.tasks.study.statistics import deviation, paired

LAM = {"classification": "MODEL.KWARGS.lam=1"}  # of a backbone otherwise


def write_study(folder: Path, recipe: object, **keys: object) -> Path:
    content = {
        "RECIPE": str(recipe),
        "SEEDS": [0],
        "BASELINE": "plain",
        "VARIANTS": {"plain": [], "ghosts": ["MODEL.KWARGS.lam=1"]},
        **keys,
    }
    path = folder / "study.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return path


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_intervals_of_paired_differences():
    """Student's with two degrees of freedom: 4.303 standard errors."""
    one, other = {0: 11.0, 1: 22.0, 2: 33.0, 7: 1.0}, {0: 10.0, 1: 20.0, 2: 30.0, 8: 2.0}
    found = paired(one, other)
    assert (found.mean, found.seeds) == (2.0, 3)
    half = 4.302653 / math.sqrt(3)
    assert found.low == pytest.approx(2 - half, abs=1e-5) and found.high == pytest.approx(2 + half, abs=1e-5)
    assert found.verdict == "undecided"
    assert paired({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.5}).verdict == "confirmed"
    assert paired({0: 0.5, 1: 1.5}, {0: 1.0, 1: 2.0}).verdict == "contradicted"
    assert paired({0: 9.0}, {0: 1.0}).verdict == "undecided"
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert deviation({0: 1.0, 1: 3.0}) == pytest.approx(math.sqrt(2)) and deviation({0: 1.0}) is None


def finish(study: Study, run: Planned, score: float) -> None:
    """The folder that the run would leave."""
    _, recipe = read(study.recipe, run.settings)
    run.folder.mkdir(parents=True)
    (run.folder / recipe.file).write_text(recipe.text)
    lines = [{"kind": "eval", "step": step, "epoch": step, "top1": value} for step, value in ((1, 99.0), (2, score))]
    (run.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.folder / "summary.json").write_text(json.dumps({"task": "classification", "metric": "top1"}))


@pytest.fixture
def half_done(config, tmp_path):
    """A study of three variants with claims, of which one run is missing."""
    claims = [
        {"claim": "ghosts help", "better": "ghosts", "than": "plain"},
        {"claim": "windows are better", "better": "windows", "than": "plain"},
    ]
    windows = ["MODEL.KWARGS.attention=[window,window,window,window]"]
    variants = {"plain": [], "ghosts": ["MODEL.KWARGS.lam=1"], "windows": windows}
    path = write_study(tmp_path, config, SEEDS=[0, 1, 2], VARIANTS=variants, CLAIMS=claims, TITLE="Ghosts $x_1$")
    study = read_study(path)
    scores = {"plain": [70.0, 72.0, 74.0], "ghosts": [72.0, 74.1, 75.9], "windows": [71.0, 71.0]}
    for run in plan_runs(study, tmp_path / "out"):
        if run.seed < len(of := scores[run.variant.name]):
            finish(study, run, of[run.seed])
    return path


def test_the_report_has_the_last_evaluation_of_each_run_and_a_verdict_of_each_claim(tool, half_done, tmp_path):
    done = tool("study", half_done, "--output", tmp_path / "out", "--report")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["variant"]: row for row in found["variants"]}
    assert rows["plain"]["mean"] == pytest.approx(72) and rows["plain"]["deviation"] == pytest.approx(2)
    assert rows["plain"]["difference"] is None
    assert rows["ghosts"]["difference"]["mean"] == pytest.approx(2) and rows["ghosts"]["seeds"] == 3
    assert rows["windows"]["seeds"] == rows["windows"]["difference"]["seeds"] == 2
    assert [claim["verdict"] for claim in found["claims"]] == ["confirmed", "undecided"]
    assert rows["ghosts"]["parameters"] > rows["plain"]["parameters"] and rows["plain"]["milliseconds"] > 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| plain | 3 | 72.00 ± 2.00 | – |" in text and "| ghosts | 3 | 74.00 ± 1.95 | +2.00 [+1.75, +2.25] |" in text
    assert text in done.out and "1 runs to go" in done.err
    with (tmp_path / "out" / "table.csv").open() as stream:
        assert [float(row["score"]) for row in csv.DictReader(stream)][:3] == [70.0, 72.0, 74.0]
    with Image.open(tmp_path / "out" / "study.png") as picture:
        assert picture.width > 1000


def test_what_is_left_is_printed_for_other_launchers(tool, half_done, tmp_path):
    done = tool("study", half_done, "--output", tmp_path / "out", "--commands")
    [line] = done.out.splitlines()
    assert line.startswith("elsa train ") and "TRAIN.SEED=2" in line
    assert str(tmp_path / "out/runs/windows/seed-2") in line


def test_a_finished_run_of_another_recipe_is_refused(tool, refused, half_done, tmp_path):
    half_done.write_text(half_done.read_text() + "SET: [TRAIN.LR=0.1]\n")
    done = tool("study", half_done, "--output", tmp_path / "out", "--report")
    refused(done, "plain/seed-0 was trained by another recipe", "--output")


# ---- runs ----------------------------------------------------------------------------------------------------------


def test_a_study_of_each_task_runs_and_started_again_trains_nothing(tool, task, tmp_path):
    override = LAM.get(task.task, "model.backbone.model_args={'lam': 1}")
    path = write_study(tmp_path, task.recipe, VARIANTS={"plain": [], "ghosts": [override]})
    out = tmp_path / "out"
    first = tool("study", path, "--output", out, "--jobs", 2, "--device", "cpu")
    assert first.code == 0, first.err
    results = json.loads((out / "results.json").read_text())
    assert results["metric"] == task.metric and [row["seeds"] for row in results["variants"]] == [1, 1]
    assert all(claim["verdict"] == "undecided" for claim in results["claims"])
    logs = {file: file.read_text() for file in out.rglob("log.jsonl")}
    assert len(logs) == 2
    again = tool("study", path, "--output", out, "--jobs", 2)
    assert again.code == 0 and "2 of 2 runs are there already" in again.err
    assert {file: file.read_text() for file in out.rglob("log.jsonl")} == logs


def test_a_run_that_fails_is_named_and_the_others_are_compared(tool, config, tmp_path):
    study = write_study(tmp_path, config, VARIANTS={"plain": [], "lost": ["DATA.ROOT=nowhere"]})
    done = tool("study", study, "--output", tmp_path / "out", "--jobs", 2)
    assert done.code == 1 and "Traceback" not in done.err
    assert "1 of 2 runs failed; the first is lost, seed 0: DATA.ROOT nowhere" in done.err.splitlines()[-1]
    assert "seed-0.log" in done.err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["variants"]
    assert [row["seeds"] for row in rows] == [1, 0] and rows[1]["mean"] is None


def test_an_interrupted_study_leaves_nothing_running_and_goes_on(start, tool, config, tmp_path):
    study = write_study(tmp_path, config, SET=["TRAIN.EPOCHS=12"])
    out = tmp_path / "out"
    process = start([], "study", study, "--output", out, "--jobs", 2)
    log = out / "runs" / "plain" / "seed-0" / "log.jsonl"
    until = time.monotonic() + 60
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not (log.parent / "summary.json").exists() and (log.parent / "last.pt").exists()
    before = log.read_text()
    assert tool("study", study, "--output", out, "--jobs", 2).code == 0
    assert log.read_text().startswith(before) and (log.parent / "summary.json").exists()


def test_runs_have_devices_and_processes(config, tmp_path):
    study = read_study(write_study(tmp_path, config))
    run = plan_runs(study, tmp_path / "out")[1]
    words = command(study, run, "cuda:1")
    assert words[-2:] == ["--device", "cuda:1"] and words[words.index("--output") + 1].endswith("runs/ghosts/seed-0")
    assert words[words.index("--set") + 1 : words.index("--output")] == ["MODEL.KWARGS.lam=1", "TRAIN.SEED=0"]


# ---- what is shipped -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies(name):
    study = read_study(find_study(Path(name)))
    assert len(study.seeds) == 3 and len(study.variants) >= 8 and len(study.claims) >= 4
    assert study.metric == "top1"


@pytest.mark.parametrize("task", TASKS)
def test_what_is_timed_is_what_is_counted(task):
    """The classifier, or the backbone of a detector or segmentor, runs and takes the image that is counted."""
    import torch

    from elsa.tools.tasks.complexity import multiply_adds

    digits = {"classification": "digits_elsa_swin_nano", "detection": "mask_rcnn_elsa_swin_nano_digits",
              "segmentation": "upernet_elsa_swin_nano_digits"}  # fmt: skip
    found, recipe = read(shipped_recipes()[digits[task]], [])
    network, shape = found.network(recipe)
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, *shape)) is not None
    counted = found.count(recipe)
    assert list(shape[1:]) == counted["input"]
    assert multiply_adds(network.to("meta"), shape) == counted["multiply_adds"]
    assert found.name in SEED


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (dict(SEED=[0]), "SEED is no key; did you mean SEEDS"),
        (dict(SEEDS=None), "lacks SEEDS"),
        (dict(SEEDS=[]), "SEEDS must be a list of different whole numbers"),
        (dict(SEEDS=[0, 0]), "SEEDS must be a list of different whole numbers"),
        (dict(SEEDS=[1.5]), "SEEDS must be"),
        (dict(RECIPE="elsa_swin_tinny"), "did you mean elsa_swin_tiny"),
        (dict(BASELINE="plane"), "BASELINE plane is no variant; did you mean plain"),
        (dict(VARIANTS={"plain": []}), "VARIANTS must be NAME: [KEY=VALUE, …], two or more"),
        (dict(VARIANTS={"plain": [], "a/b": ["MODEL.KWARGS.lam=1"]}), "'a/b' must be letters"),
        (dict(VARIANTS={"plain": [], "same": []}), "the variants plain and same are the same"),
        (
            dict(VARIANTS={"plain": [], "x": ["TRAIN.EPOCH=3"]}),
            "variant x: --set: unknown key 'TRAIN.EPOCH'; did you mean TRAIN.EPOCHS",
        ),
        (dict(VARIANTS={"plain": [], "x": ["MODEL.KWARGS.lamb=1"]}), "variant x: elsa_swin_nano"),
        (dict(VARIANTS={"plain": [], "x": ["TRAIN.SEED=3"]}), "TRAIN.SEED is set by SEEDS"),
        (dict(VARIANTS={"plain": [], "x": "MODEL.KWARGS.lam=1"}), "VARIANTS x must be a list of KEY=VALUE"),
        (dict(SET={"TRAIN.EPOCHS": 1}), "SET must be a list of KEY=VALUE"),
        (dict(CLAIMS=[{"claim": "x", "better": "plain", "than": "plain"}]), "compares plain with itself"),
        (dict(CLAIMS=[{"claim": "x", "better": "ghost", "than": "plain"}]), "did you mean ghosts"),
        (dict(CLAIMS=[{"better": "ghosts", "than": "plain"}]), "claim, better and than"),
    ],
)
def test_mistakes_in_a_study(tool, refused, config, tmp_path, keys, told):
    path = write_study(tmp_path, config, **keys)
    refused(tool("study", path, "--output", tmp_path / "out"), told)
    assert not (tmp_path / "out").exists()


def test_other_mistakes(tool, refused, config, tmp_path):
    out = tmp_path / "out"
    refused(tool("study", "digits_operator", "--output", out), "did you mean digits_operators")
    (tmp_path / "odd.yaml").write_text("a: [")
    refused(tool("study", tmp_path / "odd.yaml", "--output", out), "is no study in YAML")
    (tmp_path / "odd.yaml").write_text("- a")
    refused(tool("study", tmp_path / "odd.yaml", "--output", out), "it must be KEY: VALUE")
    path = write_study(tmp_path, config)
    refused(tool("study", path, "--output", out, "--report"), "no run is finished")
    both = ("--processes", 2, "--device", "cuda:0", "cuda:1")
    refused(tool("study", path, "--output", out, *both), "--processes shares all devices")
    metric = write_study(tmp_path, config, METRIC="top11")
    study = read_study(metric)
    finish(study, plan_runs(study, out)[0], 50.0)
    refused(tool("study", metric, "--output", out, "--report"), "METRIC top11", "did you mean top1")
