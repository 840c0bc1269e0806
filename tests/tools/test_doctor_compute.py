"""The doctor on torch, GPUs, operators and apex, played by stand-ins."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from findings import NO_TASK, only

from elsa.engine import apex as engine_apex
from elsa.kernels import library
from elsa.tools.tasks.doctor import compute
from elsa.tools.tasks.doctor.finding import NOTE, OK, PROBLEM, Finding

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
        properties = SimpleNamespace(name="NVIDIA X1", total_memory=80 * 2**30, major=major, minor=minor)
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
