"""tools/doctor.py on machines that are broken in every way it knows, played by stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata

import pytest
from findings import NO_TASK, only

from elsa.tools.tasks.doctor import machine, recipe
from elsa.tools.tasks.doctor.examine import CHECKS, examine, run_check
from elsa.tools.tasks.doctor.finding import NOTE, OK, PROBLEM, Case, Finding, as_json, has_problem, told

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


# ---- how it is told ------------------------------------------------------------------------------------------------

FOUND = [Finding("a", OK, "well"), Finding("long name", PROBLEM, "is " + "very " * 20 + "wrong", "mend it")]


def test_people_are_told_in_columns_with_the_cure_below():
    lines = told(FOUND, 80)
    assert lines[0] == "ok       a          well"
    assert lines[1].startswith("problem  long name  is very very ")
    assert max(map(len, lines)) <= 80
    assert lines[-3:] == [" " * 20 + "→ mend it", "", "1 problem"]
    assert told([FOUND[0], *[Finding("b", NOTE, "x", "y")] * 2], 80)[-1] == "2 notes"
    assert told(FOUND[:1])[-1] == "all is well"


def test_machines_are_told_everything():
    told = json.loads(as_json(FOUND))
    assert told["ok"] is False
    assert told["findings"][1] == dict(subject="long name", level="problem", text=FOUND[1].text, cure="mend it")
    assert json.loads(as_json(FOUND[:1]))["ok"] is True


# ---- the system ----------------------------------------------------------------------------------------------------


def test_python(monkeypatch):
    assert only(machine.python).level == OK
    monkeypatch.setattr(machine.sys, "version_info", (3, 9, 1))
    found = only(machine.python)
    assert (found.level, found.cure) == (PROBLEM, "PYTHON=/path/to/python3.12 bash scripts/setup.sh")
    assert found.text.endswith("3.10 or newer is needed")


@pytest.mark.parametrize(
    ("asked", "level", "text", "cure"),
    [
        (["torch>=2.12,<3", "submitit; extra == 'launch'"], OK, "has all that it asks for", ""),
        (["torch<2"], PROBLEM, "2.", "install 'torch<2'"),
        (["nosuchpackage>=1"], PROBLEM, "not installed; nosuchpackage>=1 is needed", "install 'nosuchpackage>=1'"),
        (['nosuchpackage; extra == "train"'], PROBLEM, "nosuchpackage is needed", "install 'nosuchpackage'"),
    ],
)
def test_packages(monkeypatch, asked, level, text, cure):
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    found = only(machine.packages)
    assert found.level == level
    assert text in found.text and cure in found.cure


def test_sources_that_are_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    found = only(machine.packages)
    assert (found.level, found.cure) == (NOTE, f"{sys.executable} -m pip install -e .")
    assert machine.requirement("torch") == "torch"


@pytest.mark.parametrize(("free", "level"), [(0.5, PROBLEM), (5, NOTE), (100, OK)])
def test_free_disk(monkeypatch, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free * GIB))
    found = next(iter(machine.disk(NO_TASK)))
    assert (found.level, found.text) == (level, f"{free} GiB free in {os.getcwd()}")
    assert bool(found.cure) is (level != OK)


@pytest.mark.parametrize(("free", "level"), [(0.0625, PROBLEM), (1, NOTE), (8, OK)])
def test_shared_memory_with_its_cure(monkeypatch, tmp_path, free, level):
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free * GIB))
    found = only(machine.shared_memory)
    assert found.level == level
    assert ("--shm-size" in found.cure) is (level != OK)


def test_a_system_without_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "SHARED", tmp_path / "none")
    assert only(machine.shared_memory).level == OK


# ---- the recipe ----------------------------------------------------------------------------------------------------


def test_the_data_of_a_classifier(images, tmp_path):
    case = Case("elsa_swin_tiny", (f"DATA.ROOT={tmp_path / 'none'}",))
    read, found = recipe.data(case)
    assert read == Finding("recipe", OK, "elsa_swin_tiny, of classification")
    assert found.level == PROBLEM and found.text.startswith(f"DATA.ROOT {tmp_path / 'none'} does not exist")
    assert found.cure == "elsa doctor elsa_swin_tiny --set DATA.ROOT=FOLDER"
    wrong = list(recipe.data(Case("elsa_swin_tiny", (f"DATA.ROOT={images}",))))[-1]
    assert (wrong.level, wrong.cure) == (
        PROBLEM,
        f"elsa check_data elsa_swin_tiny --set DATA.ROOT={images}",
    )  # 4 classes of 1000
    case = Case("elsa_swin_tiny", (f"DATA.ROOT={images}", "MODEL.NUM_CLASSES=4"))
    assert list(recipe.data(case))[-1].level == OK
    found = only(recipe.reading, case)
    assert found.level == OK and "to read one of " in found.text and "training images" in found.text


def test_data_that_a_training_makes(tmp_path):
    case = Case("digits_elsa_swin_nano", (f"DATA.ROOT={tmp_path / 'none'}",))
    assert list(recipe.data(case))[-1].level == OK
    assert not (tmp_path / "none").exists()


def test_the_data_of_a_detector(write_coco, tmp_path):
    root, name = tmp_path / "coco", "mask_rcnn_elsa_swin_tiny_1x"
    absent = Case(name, (f"data_root={root}/",))
    read, found = recipe.data(absent)
    assert read.level == OK and absent.task == "detection"
    assert (found.level, found.cure) == (PROBLEM, f"elsa doctor {name} --set data_root=FOLDER/")
    write_coco(root, ("a", "b", "c"))
    assert list(recipe.data(Case(name, (f"data_root={root}/",))))[-1].level == OK
    shutil.rmtree(root / "val2017")
    found = list(recipe.data(Case(name, (f"data_root={root}/",))))[-1]
    assert (found.level, found.cure) == (PROBLEM, f"elsa check_data {name} --set data_root={root}/")
    assert found.text.startswith(f"val_dataloader.dataset.data_prefix.img {root}/val2017 does not exist")


def test_a_recipe_that_is_none():
    found = only(recipe.data, Case("elsa_swin_tinny"))
    assert (found.subject, found.level) == ("recipe", PROBLEM)
    assert "did you mean elsa_swin_tiny?" in found.text


def test_slow_images(monkeypatch):
    monkeypatch.setattr(recipe, "SLOW", 0.0)
    found = only(recipe.reading)
    assert (found.level, found.cure) == (NOTE, "elsa benchmark data CONFIG")
    assert "500×375 pixels in memory" in found.text


# ---- checks that come to a bad end ---------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """``stand_in(name, text)``: a package that Python finds before the real one, in processes to come."""

    def call(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")

    return call


FAULTS = {
    "import ctypes; ctypes.string_at(0)": "killed by SIGSEGV",
    "import os; os._exit(3)": "exit code 3",
    "import sys; sys.exit('no licence')": "exit code 1, no licence",
    "import time; print('noise', flush=True); time.sleep(60)": "no end after 3 s",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_package_that_ends_the_process_is_a_finding(stand_in, text):
    stand_in("torch", text)
    found = examine(Case(), ("Python", "torch", "GPU", "disk"), limit=3)
    assert found[0].level == OK
    assert found[1].text == f"this check could not be ended: {FAULTS[text]}"
    assert (found[1].subject, found[1].level) == ("torch", PROBLEM)
    assert [finding.subject for finding in found[2:]][:1] == ["disk"]  # and nothing of GPUs, which torch has to tell
    assert found[1].cure == f"{sys.executable} -X faulthandler -c 'import torch'"


def test_torch_that_does_not_load_is_told_once(stand_in):
    stand_in("torch", "raise ImportError('libcudart.so.13: cannot open shared object file')")
    found = examine(Case("elsa_swin_tiny"))
    problems = [finding for finding in found if finding.level == PROBLEM]
    assert problems[0].text == "cannot be imported: ImportError: libcudart.so.13: cannot open shared object file"
    assert {finding.subject for finding in problems} <= {"torch", "elsa.models.mm"}
    assert {"Python", "packages", "disk"} <= {finding.subject for finding in found}


@pytest.mark.parametrize("name", CHECKS)
def test_an_error_of_a_check_is_a_finding(monkeypatch, name):
    def check(case):
        raise FileNotFoundError("the current folder is gone")
        yield

    monkeypatch.setitem(CHECKS, name, check)
    (found,) = run_check(name, Case())
    assert (found.subject, found.level) == (name, PROBLEM)
    assert found.text == "this check failed: FileNotFoundError: the current folder is gone"


def test_the_command_runs_where_nothing_else_can(root, stand_in, tmp_path):
    """torch, timm, numpy and tqdm broken: ``elsa doctor`` says so, in UTF-8 or without."""
    for name in ("torch", "timm", "numpy", "tqdm"):
        stand_in(name, "raise ImportError('broken')")
    for start, encoding in (([str(root / "tools/doctor.py")], "utf-8"), (["-m", "elsa.tools", "doctor"], "ascii")):
        done = subprocess.run(
            [sys.executable, *start],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            cwd=tmp_path.parent,
        )
        assert (done.returncode, done.stderr) == (1, b"")
        assert "problem  torch" in done.stdout.decode(encoding)


def test_the_command_ends_with_0_where_all_is_well(tool, monkeypatch):
    findings = [Finding("a", NOTE, "b", "c")]
    monkeypatch.setattr("elsa.tools.tasks.doctor.examine.examine", lambda case: findings)
    outcome = tool("doctor", "--json")
    assert (outcome.code, json.loads(outcome.out)["ok"]) == (0, True)
    findings.append(Finding("d", PROBLEM, "e", "f"))
    assert tool("doctor").code == 1
    assert tool("doctor", "--set", "A=1").code == 2
    assert has_problem(findings)
