"""tools/doctor.py on machines that are broken in every way it knows, played by stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from elsa.engine import apex as engine_apex
from elsa.kernels import library
from elsa.tools.tasks.doctor import compute, dense, machine, recipe
from elsa.tools.tasks.doctor.examine import CHECKS, examine, run_check
from elsa.tools.tasks.doctor.finding import NOTE, OK, PROBLEM, Case, Finding, as_json, has_problem, told

GIB = 2**30
Usage = namedtuple("Usage", "total used free")
NO_TASK = SimpleNamespace(config=None, task="")


def only(check, case=NO_TASK) -> Finding:
    (found,) = check(case)
    return found


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


# ---- torch and GPUs ------------------------------------------------------------------------------------------------


def test_torch_that_cannot_be_imported(monkeypatch):
    def fail(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return torch

    monkeypatch.setattr(compute.importlib, "import_module", fail)
    first, second = compute.torch(NO_TASK)
    assert (first.subject, first.level) == ("torch", OK)
    assert (second.subject, second.level) == ("torchvision", PROBLEM)
    assert second.text == "cannot be imported: RuntimeError: operator torchvision::nms does not exist"
    assert second.cure.startswith(f"{sys.executable} -m pip install --force-reinstall 'torch<3,>=")
    assert "'torchvision>=" in second.cure


@pytest.fixture
def machine_with(monkeypatch, tmp_path):
    """``machine_with(driver=…, cuda=…, built=…)``: an nvidia-smi, and a torch that sees no GPU."""

    def call(driver: str = "", cuda: str = "", built: str | None = "13.0") -> None:
        script = tmp_path / "nvidia-smi"
        table = f"| NVIDIA-SMI {driver}   Driver Version: {driver}   CUDA Version: {cuda}  |"
        script.write_text(
            f'#!/bin/sh\nif [ "$1" = -L ]; then echo "GPU 0: NVIDIA A10 (UUID: GPU-1)"; else echo "{table}"; fi\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", built)

        def init():
            raise RuntimeError("CUDA unknown error")

        monkeypatch.setattr(torch.cuda, "init", init)

    return call


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compute, "ask_driver", lambda: ([], "", ""))
    assert only(compute.gpus) == Finding("GPU", OK, "no NVIDIA GPU: the processor computes")


@pytest.mark.parametrize(
    ("how", "text", "cure"),
    [
        (dict(driver="550.1", cuda="12.4", built=None), "a build without CUDA: install one for CUDA 12.4", "install"),
        (dict(driver="550.1", cuda="12.4"), "driver 550.1 is for CUDA 12.4 at most, and torch was built with 13.0",
         "install a newer driver, or a torch that was built for CUDA 12.4"),
        (dict(driver="590.1", cuda="13.1"), "torch cannot use them: RuntimeError: CUDA unknown error", "modprobe"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_does_not_see(machine_with, how, text, cure):
    machine_with(**how)
    found = only(compute.gpus)
    assert found.level == PROBLEM
    assert found.text.startswith("NVIDIA A10, ")
    assert text in found.text and cure in found.cure


def test_a_gpu_that_is_hidden(machine_with, monkeypatch):
    machine_with(driver="590.1", cuda="13.1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = only(compute.gpus)
    assert (found.level, found.cure) == (PROBLEM, "unset CUDA_VISIBLE_DEVICES")


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(major, minor)``: a torch that sees one of this architecture, and a CPU that plays it."""

    def call(major: int, minor: int, architectures: tuple[str, ...] = ("sm_80", "sm_90", "compute_90")) -> None:
        properties = SimpleNamespace(name="NVIDIA X1", total_memory=80 * GIB, major=major, minor=minor)
        monkeypatch.setattr(compute, "ask_driver", lambda: (["NVIDIA X1"], "590.1", "13.1"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(architectures))
        ones, rand, zeros = torch.ones, torch.rand, torch.zeros
        monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
        monkeypatch.setattr(torch, "rand", lambda *size, device: rand(*size))
        monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))

    return call


def test_a_gpu_that_computes(gpu):
    gpu(9, 0)
    driver, card = compute.gpus(NO_TASK)
    assert driver == Finding("driver", OK, "590.1, for CUDA 13.1 at most")
    assert card == Finding("GPU 0", OK, "NVIDIA X1, 80 GiB, architecture 9.0")


def test_a_gpu_that_torch_was_not_built_for(gpu):
    gpu(7, 0)
    card = list(compute.gpus(NO_TASK))[1]
    assert card.level == PROBLEM
    assert card.text.endswith("architecture 7.0; torch was built for sm_80, sm_90, compute_90")


def test_a_gpu_that_fails(gpu, monkeypatch):
    gpu(9, 0)

    def fail(*size, device):
        raise RuntimeError("CUDA error: uncorrectable ECC error")

    monkeypatch.setattr(torch, "ones", fail)
    card = list(compute.gpus(NO_TASK))[1]
    assert (card.level, card.cure) == (PROBLEM, "nvidia-smi")
    assert card.text.endswith("it does not compute: RuntimeError: CUDA error: uncorrectable ECC error")


@pytest.mark.parametrize(
    ("built", "runs"),
    [
        (["8.0"], {(8, 0), (8, 6)}),
        (["8.0", "9.0", "10.0+PTX"], {(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)}),
        (["sm_90a"], {(9, 0)}),
        (["sm_80", "compute_80"], {(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)}),
        (["sm_100"], {(10, 0)}),
        (["nonsense"], set()),
    ],
)
def test_which_gpus_code_runs_on(built, runs):
    known = {(7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)}
    assert {capability for capability in known if compute.covers(built, capability)} == runs


# ---- operators and apex --------------------------------------------------------------------------------------------


@pytest.fixture
def backends(monkeypatch):
    """``backends(cpu=…, cuda=…)``: why they are missing, or None."""

    def call(cpu: str | None = None, cuda: str | None = None) -> None:
        monkeypatch.setattr(library, "OBSTACLES", {"cpu": cpu, "cuda": cuda})
        monkeypatch.delenv("ELSA_BACKEND", raising=False)

    return call


def test_operators_that_were_not_compiled(backends, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    backends(cpu="no C++ compiler: c++ was not found when the package was built", cuda="torch is a build without CUDA")
    cpu, cuda = compute.operators(NO_TASK)
    assert cpu.level == NOTE
    assert cpu.text.startswith("no C++ compiler") and cpu.text.endswith("the reference computes instead, slowly")
    assert "-m pip install --no-build-isolation --no-deps --force-reinstall" in cpu.cure
    assert cuda == Finding("operators, cuda", OK, "torch is a build without CUDA")


def test_missing_cuda_operators_matter_where_there_is_a_gpu(backends, gpu):
    gpu(9, 0)
    backends(cpu="none", cuda="no CUDA toolkit was found")
    cuda = list(compute.operators(NO_TASK))[1]
    assert cuda.level == NOTE and "--force-reinstall" in cuda.cure


def test_kernels_for_other_gpus(backends, gpu, monkeypatch):
    gpu(7, 5)
    backends()
    monkeypatch.setattr(library, "_build_record", lambda: {"architectures": "8.0;9.0"})

    def attention(value, logits, *, num_heads, kernel_size, backend):
        if backend == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        return value.mean((0, 1, 2)).expand(value.shape)

    monkeypatch.setattr("elsa.kernels.elsa_attention", attention)
    monkeypatch.setattr("elsa.kernels.backend_info", lambda: dict(cpu="available", cuda="available",
                                                                  cpu_instruction_set="avx2"))  # fmt: skip
    cpu, cuda, broken = compute.operators(NO_TASK)
    assert cpu == Finding("operators, cpu", OK, "available, avx2")
    assert cuda == Finding("operators, cuda", OK, "available, built for 8.0;9.0")
    assert broken.level == PROBLEM
    assert broken.text.startswith("on cuda:0: RuntimeError: CUDA error: no kernel image")
    assert broken.cure.startswith("TORCH_CUDA_ARCH_LIST=7.5 ")


def test_operators_that_compute_something_else(backends, monkeypatch):
    backends(cuda="none")
    monkeypatch.setattr("elsa.kernels.elsa_attention", lambda value, logits, **options: value + 1)
    monkeypatch.setattr("elsa.kernels.backend_info", lambda: dict(cpu="available", cuda="none",
                                                                  cpu_instruction_set="avx2"))  # fmt: skip
    broken = list(compute.operators(NO_TASK))[1]
    assert broken.text == "on cpu:0: computes something else than the reference" and broken.level == PROBLEM


def test_a_backend_that_is_forced(backends, monkeypatch):
    backends(cpu="none", cuda="none")
    monkeypatch.setenv("ELSA_BACKEND", "reference")
    first = next(iter(compute.operators(NO_TASK)))
    assert (first.level, first.cure) == (NOTE, "unset ELSA_BACKEND")


def recipe_with(**values):
    task = SimpleNamespace(name="classification")
    return SimpleNamespace(config="x.yaml", recipe=lambda: (task, SimpleNamespace(values=values)))


def test_apex(monkeypatch):
    asking = recipe_with(backend="apex")
    monkeypatch.setattr(compute.importlib.util, "find_spec", lambda name: None)
    assert only(compute.apex).level == OK
    assert only(compute.apex, recipe_with(backend="native")).level == OK
    found = only(compute.apex, asking)
    assert (found.level, found.cure) == (PROBLEM, engine_apex.INSTALL)


def test_the_apex_that_is_another_package(monkeypatch, tmp_path):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("import pyramid")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = only(compute.apex)
    assert found.level == NOTE
    assert found.text == f"what is installed in {tmp_path}/apex is another package than NVIDIA's"
    assert found.cure.endswith("-m pip uninstall -y apex")
    assert only(compute.apex, recipe_with(optimizer="apex_fused_adam")).level == PROBLEM


def test_an_apex_without_its_extensions(monkeypatch, tmp_path):
    (tmp_path / "apex" / "multi_tensor_apply").mkdir(parents=True)
    (tmp_path / "apex" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    optimizers, amp = compute.apex(NO_TASK)
    assert (optimizers.subject, optimizers.level, optimizers.cure) == ("apex.optimizers", NOTE, engine_apex.INSTALL)
    assert "there is no amp_C" in optimizers.text
    assert amp.cure == engine_apex.INSTALL_AMP


# ---- the packages for detection and segmentation -------------------------------------------------------------------

TESTED = {"onedl-mmengine": "0.10.12", "mmcv-lite": "2.1.0", "mmdet": "3.3.0", "mmsegmentation": "1.2.2",
          "pycocotools": "2.0.11"}  # fmt: skip


@pytest.fixture
def installed(monkeypatch):
    """``installed({distribution: version})``: of the mm packages these and no others; all can be imported but those
    of ``broken``."""

    def call(versions: dict[str, str], broken: dict[str, Exception] | None = None) -> None:
        monkeypatch.setattr(dense, "version_of", versions.get)
        monkeypatch.setattr(dense.importlib.util, "find_spec", lambda name: None)

        def load(name):
            if name in (broken or {}):
                raise broken[name]

        monkeypatch.setattr(dense.importlib, "import_module", load)

    return call


def case_of(task: str):
    return SimpleNamespace(config="x" if task else None, task=task)


def levels(found) -> dict[str, str]:
    return {finding.subject: finding.level for finding in found}


def test_the_tested_packages(installed):
    installed(TESTED)
    assert set(levels(dense.stack(NO_TASK)).values()) == {OK}


def test_none_of_the_packages(installed):
    installed({})
    assert only(dense.stack) == Finding(
        "mm packages", NOTE, "not installed: detection and segmentation need them, classification does not", dense.SETUP
    )
    found = only(dense.stack, case_of("detection"))
    assert (found.level, found.cure) == (PROBLEM, "bash scripts/setup.sh --dense")


@pytest.mark.parametrize(
    ("added", "name", "text"),
    [
        ({"mmengine": "0.10.7"}, "mmengine", "onedl-mmengine 0.10.12, mmengine 0.10.7: all are imported as mmengine"),
        ({"mmcv": "2.2.0"}, "mmcv", "all are imported as mmcv"),
        ({"onedl-mmcv": "2.3.6", "mmcv-full": "1.7.2"}, "mmcv", "onedl-mmcv 2.3.6, mmcv-full 1.7.2"),
        ({"onedl-mmdetection": "3.4.0"}, "mmdet", "all are imported as mmdet"),
        ({"mmseg": "1.0"}, "mmseg", "mmsegmentation 1.2.2, mmseg 1.0"),
    ],
)
def test_packages_that_lie_over_each_other(installed, added, name, text):
    installed(TESTED | added)
    (found,) = (found for found in dense.stack(NO_TASK) if found.level != OK)
    assert (found.subject, found.level) == (name, PROBLEM)
    assert text in found.text
    tested, version = dense.TESTED[name]
    assert all(each in found.cure.partition("&&")[0] for each in (tested, *added))
    assert found.cure.endswith(f"install --no-deps {tested}=={version}")
    assert levels(dense.stack(case_of("classification")))[name] == NOTE


def without(name: str) -> dict[str, str]:
    return {key: version for key, version in TESTED.items() if key != name}


@pytest.mark.parametrize(
    ("versions", "name", "level", "text"),
    [
        (without("onedl-mmengine") | {"mmengine": "0.10.7"}, "mmengine", NOTE, "cannot load its own checkpoints"),
        (without("mmcv-lite") | {"mmcv-full": "1.7.2"}, "mmcv", PROBLEM, "mmcv 1, and 2 is needed"),
        (without("mmcv-lite") | {"onedl-mmcv": "2.3.6"}, "mmcv", NOTE, "tested with mmcv-lite 2.1.0"),
        (without("mmsegmentation") | {"mmseg": "1.0"}, "mmseg", PROBLEM, "segments Chinese words"),
        (TESTED | {"mmdet": "3.2.0"}, "mmdet", NOTE, "mmdet 3.2.0; tested with mmdet 3.3.0"),
    ],
)
def test_packages_other_than_the_tested(installed, versions, name, level, text):
    installed(versions)
    (found,) = (found for found in dense.stack(NO_TASK) if found.level != OK)
    assert (found.subject, found.level) == (name, level)
    assert text in found.text and found.cure


def test_one_of_the_packages_is_missing(installed):
    installed(without("mmdet"))
    assert levels(dense.stack(NO_TASK))["mm packages"] == NOTE
    assert levels(dense.stack(case_of("segmentation")))["mm packages"] == PROBLEM


def test_a_package_that_cannot_be_imported(installed):
    installed(TESTED, {"mmdet": AssertionError("MMCV==2.2.0 is used but incompatible")})
    found = list(dense.stack(NO_TASK))[-1]
    assert (found.subject, found.level) == ("mmdet", PROBLEM)
    assert found.text == "cannot be imported: AssertionError: MMCV==2.2.0 is used but incompatible"
    assert found.cure.endswith("install --force-reinstall --no-deps mmdet==3.3.0")


def test_two_opencvs(installed):
    installed(TESTED | {"opencv-python": "4.8", "opencv-python-headless": "5.0"})
    (found,) = (found for found in dense.stack(NO_TASK) if found.level != OK)
    assert (found.subject, found.level) == ("OpenCV", NOTE)
    assert "uninstall -y opencv-python opencv-python-headless" in found.cure


# ---- the recipe ----------------------------------------------------------------------------------------------------


def test_the_data_of_a_classifier(images, tmp_path):
    case = Case("elsa_swin_tiny", (f"DATA.ROOT={tmp_path / 'none'}",))
    read, found = recipe.data(case)
    assert read == Finding("recipe", OK, "elsa_swin_tiny, of classification")
    assert found.level == PROBLEM and found.text.startswith(f"DATA.ROOT {tmp_path / 'none'} does not exist")
    assert found.cure == "elsa doctor elsa_swin_tiny --set DATA.ROOT=FOLDER"
    wrong = list(recipe.data(Case("elsa_swin_tiny", (f"DATA.ROOT={images}",))))[-1]
    assert (wrong.level, wrong.cure) == (PROBLEM, f"elsa check_data imagenet {images}")  # 4 classes of 1000
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
    assert (found.level, found.cure) == (PROBLEM, f"elsa check_data coco {root}")
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
