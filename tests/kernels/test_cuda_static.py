"""What the CUDA compiler says about every kernel on every architecture: no spills, no stray double precision."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import elsa.kernels

KERNELS = Path(elsa.kernels.__file__).parent


def missing_tools() -> str | None:
    home = os.environ.get("CUDA_HOME")
    if (
        not any(KERNELS.glob("_cuda.*so"))
        and not (home and (Path(home) / "bin" / "nvcc").exists())
        and shutil.which("nvcc") is None
    ):
        return "no nvcc: the CUDA kernels were not compiled"
    if importlib.util.find_spec("triton") is None and shutil.which("cuobjdump") is None:
        return "no cuobjdump (it comes with triton): the compiled CUDA kernels were not inspected"
    return None


@pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))
@pytest.mark.parametrize("script", ["cuda_report.py", "hadamard_cuda_report.py"])
def test_compiled_kernels_keep_the_rules(script):
    """Those that were built, if they were, else compiled for it."""
    path = Path(__file__).with_name(script)
    built = [["--library", library] for library in KERNELS.glob("_cuda.*so")][:1]
    command = [sys.executable, path, "--check", *(built[0] if built else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "nothing to report" in result.stdout
