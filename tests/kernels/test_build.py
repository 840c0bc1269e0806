"""What happens where the operator was not compiled, or was compiled for another torch: a reason, never a crash."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[2]
REPORT = "import json; from elsa.kernels import backend_info; print(json.dumps(backend_info()))"


@pytest.fixture
def bare_package(tmp_path):
    """A copy of the package without its libraries; returns its folder and a function that asks it for backend_info."""
    folder = tmp_path / "elsa/kernels"
    folder.mkdir(parents=True)
    for source in (ROOT / "kernels").glob("*.py"):
        shutil.copy(source, folder)

    def info():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", REPORT]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return folder, info


def test_no_library(bare_package):
    folder, info = bare_package
    assert "_C is not installed" in info()["cpu"]
    (folder / "_build.json").write_text(json.dumps({"torch": "2.14", "missing": {"_C": "no C++ compiler: c++"}}))
    report = info()
    assert report["reference"] == "available"
    assert report["cpu"] == "no C++ compiler: c++"
    assert "no C++ compiler: c++" in report["cuda"]


def test_a_file_that_is_no_library(bare_package):
    folder, info = bare_package
    (folder / "_C.abi3.so").write_text("not a library")
    (folder / "_build.json").write_text(json.dumps({"torch": "1.2.3", "missing": {}}))
    cpu = info()["cpu"]
    assert "_C.abi3.so does not load" in cpu and "built with torch 1.2.3" in cpu and torch.__version__ in cpu


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build a library with a missing symbol")
def test_a_library_for_another_torch(bare_package):
    folder, info = bare_package
    source = folder / "stale.c"
    source.write_text("void gone_from_torch(void); __attribute__((constructor)) void f(void) { gone_from_torch(); }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / "_C.abi3.so"), str(source)], check=True)
    assert "gone_from_torch" in info()["cpu"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build an empty library")
def test_a_library_without_the_operators(bare_package):
    folder, info = bare_package
    source = folder / "empty.c"
    source.write_text("int nothing;")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / "_C.abi3.so"), str(source)], check=True)
    assert "does not define elsa::attention_forward" in info()["cpu"]


OLD_SCHEMA = """
#include <torch/csrc/stable/library.h>
STABLE_TORCH_LIBRARY(elsa, m) {
  m.def("attention_forward(Tensor value, Tensor logits, int kernel_size) -> Tensor");
}
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler to build a library of other sources")
def test_a_library_of_other_sources(bare_package):
    """It loads, and defines an operator with other arguments."""
    folder, info = bare_package
    source = folder / "old.cpp"
    source.write_text(OLD_SCHEMA)
    flags = ["-std=c++20", "-shared", "-fPIC", "-DTORCH_TARGET_VERSION=0x020c000000000000"]
    torch_flags = [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
    command = ["c++", *flags, str(source), *torch_flags, "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([*command, "-o", str(folder / "_C.abi3.so")], check=True)
    report = info()
    takes = "attention_forward takes (Tensor value, Tensor logits, int kernel_size) -> Tensor"
    assert f"the compiled library is of another version of the sources: {takes}" in report["cpu"]
    assert "needs the library with the operator's schema" in report["cuda"]


def build(tmp_path, **environment):
    """Runs the build command into tmp_path and returns the record it leaves."""
    folders = [f"--build-lib={tmp_path / 'lib'}", f"--build-temp={tmp_path / 'temp'}"]
    command = [sys.executable, "setup.py", "-q", "build_ext", *folders]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    if result.returncode:
        return result.stderr
    return json.loads((tmp_path / "lib/elsa/kernels/_build.json").read_text())


def test_build_without_a_compiler(tmp_path):
    record = build(tmp_path, CXX="/nonexistent/c++", ELSA_CUDA="0")
    assert record["torch"] == torch.__version__
    assert "no C++ compiler: /nonexistent/c++" in record["missing"]["_C"]
    assert record["missing"]["_cuda"] == "ELSA_CUDA=0 when the package was built"


def test_build_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('hidden')")
    record = build(tmp_path, PYTHONPATH=str(tmp_path), ELSA_CUDA="auto")
    assert record["torch"] is None
    assert record["missing"]["_C"] == "torch could not be imported while the package was built (hidden)"
    assert "ELSA_CUDA=1, but torch could not be imported" in build(tmp_path, PYTHONPATH=str(tmp_path), ELSA_CUDA="1")


def test_wrong_setting(tmp_path):
    assert "ELSA_CUDA must be auto, 0 or 1, got 'yes'" in build(tmp_path, ELSA_CUDA="yes")
