"""Builds the compiled operator into ``elsa.kernels``; everything else about the package is in pyproject.toml.

Two libraries from one tree (tests compile the CUDA sources for the CPU by themselves):

``_C``     operator schema and CPU kernels; wherever there are torch and a C++ compiler.
``_cuda``  CUDA kernels; where a toolkit is found that fits a CUDA build of torch (``ELSA_CUDA=auto|0|1``: 1 makes a
           missing toolkit an error; ``TORCH_CUDA_ARCH_LIST`` is honoured).

The package works without any of them, on the PyTorch reference. What was built, against which torch, for which GPUs,
and why the rest was not, is written to ``_build.json`` beside the libraries, for ``elsa.kernels.backend_info()`` and
``elsa doctor`` to tell.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = Path("kernels/csrc")
TARGET = "-DTORCH_TARGET_VERSION=0x020c000000000000"  # stable ABI: one binary for torch 2.12 and later
CXX = ["-std=c++20", "-O3", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", "-g0", TARGET]
NVCC = ["-std=c++20", "-O3", "-lineinfo", "-Xcompiler", "-fvisibility=hidden", TARGET]
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    torch, TORCH_MISSING = None, f"torch could not be imported while the package was built ({error})"


def sources(folder: str, *suffixes: str) -> list[str]:
    """The files of one source folder, sorted, relative to the root as setuptools wants them."""
    return sorted(str(CSRC / folder / path.name) for s in suffixes for path in (ROOT / CSRC / folder).glob(f"*{s}"))


def headers() -> list[str]:
    """Everything a library may include: a change in one of them rebuilds it."""
    found = (path for suffix in (".h", ".cuh", ".cu") for path in (ROOT / CSRC).rglob(f"*{suffix}"))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def find_cuda_home() -> Path | None:
    """A toolkit with its headers; an nvcc on PATH may be a wrapper script that lies elsewhere."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(str(Path(nvcc).resolve().parents[1]))
    candidates += ["/usr/local/cuda", *map(str, sorted(Path("/usr/local").glob("cuda-*"), reverse=True))]
    for candidate in filter(None, candidates):
        home = Path(candidate)
        if (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
            return home
    return None


def cuda_obstacle(home: Path | None) -> str | None:
    """Why the CUDA library cannot be built here; None where it can."""
    if not sources("cuda", ".cu"):
        return "this source tree has no CUDA kernels"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if home is None:
        return "no CUDA toolkit was found (a folder with bin/nvcc and include/cuda_runtime.h); set CUDA_HOME"
    text = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        found = f"{release[1]}.{release[2]}" if release else "of unknown version"
        return f"the CUDA toolkit in {home} is {found}, but torch was built with CUDA {torch.version.cuda}"
    return None


def extensions() -> tuple[list[Extension], dict[str, str]]:
    """What to build, and the reasons why the rest is not."""
    wanted = os.environ.get("ELSA_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"ELSA_CUDA must be auto, 0 or 1, got {wanted!r}")
    if torch is None:
        if wanted == "1":
            sys.exit(f"ELSA_CUDA=1, but {TORCH_MISSING}; install with --no-build-isolation")
        # Named so that the build command runs and leaves its record.
        return [Extension("elsa.kernels._C", sources=[], optional=True)], {"_C": TORCH_MISSING, "_cuda": TORCH_MISSING}

    cpu = [str(CSRC / "op.cpp"), *sources("cpu", ".cpp")]
    built = [cpp("elsa.kernels._C", cpu)]
    home = find_cuda_home() if wanted != "0" else None
    obstacle = "ELSA_CUDA=0 when the package was built" if wanted == "0" else cuda_obstacle(home)
    if wanted == "1" and obstacle:
        sys.exit(f"ELSA_CUDA=1, but {obstacle}")
    reasons = {"_cuda": obstacle} if obstacle else {}
    if not obstacle:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)  # torch's own default needs a GPU
        cpp_extension.CUDA_HOME = os.environ["CUDA_HOME"] = str(home)
        flags = {"cxx": [*CXX, "-DUSE_CUDA"], "nvcc": [*NVCC, "-DUSE_CUDA"]}
        built.append(
            cpp_extension.CUDAExtension(
                "elsa.kernels._cuda", sources("cuda", ".cpp", ".cu"), py_limited_api=True, extra_compile_args=flags
            )
        )
    for extension in built:
        extension.optional = not (wanted == "1" and extension.name.endswith("_cuda"))
        extension.depends = [*headers(), "setup.py"]
    return built, reasons


def cpp(name: str, files: list[str], *flags: str) -> Extension:
    return cpp_extension.CppExtension(name, files, py_limited_api=True, extra_compile_args={"cxx": [*CXX, *flags]})


class Build(cpp_extension.BuildExtension if torch is not None else build_ext):
    """torch's build command; a library that does not compile leaves a reason instead of breaking the installation."""

    def run(self) -> None:
        self.reasons = dict(REASONS)
        super().run()
        self.write_record()
        if not (self.editable_mode or self.inplace):  # beside the package in site-packages, where Python reads it
            shutil.copy(ROOT / "models/mm/elsa_mm.pth", self.build_lib)

    def build_extensions(self) -> None:
        if torch is not None:
            try:
                super().build_extensions()
            except Exception as error:
                if any(not extension.optional for extension in self.extensions):
                    raise
                for extension in self.extensions:
                    self.reasons.setdefault(short_name(extension), explain(error))

    def build_extension(self, extension: Extension) -> None:
        try:
            super().build_extension(extension)
        except Exception as error:
            if not extension.optional:
                raise
            self.reasons[short_name(extension)] = explain(error)
            self.warn(f"{extension.name} was not built: {explain(error)}")

    def write_record(self) -> None:
        record = {"torch": None if torch is None else torch.__version__, "missing": self.reasons}
        if any(short_name(extension) == "_cuda" for extension in self.extensions) and "_cuda" not in self.reasons:
            record["architectures"] = os.environ["TORCH_CUDA_ARCH_LIST"]
        packed = Path(self.build_lib) / "elsa/kernels"
        for library in packed.glob("_*.so"):  # of an earlier build: it must not slip into a wheel
            if library.name.split(".")[0] not in {short_name(extension) for extension in self.extensions}:
                library.unlink()
        beside = (ROOT / "kernels",) if self.editable_mode or self.inplace else ()
        for folder in (packed, *beside):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build.json").write_text(json.dumps(record, indent=1) + "\n")


def short_name(extension: Extension) -> str:
    return extension.name.rpartition(".")[2]


def explain(error: BaseException) -> str:
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler: {compiler} was not found when the package was built"
    return f"the build failed: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"


EXTENSIONS, REASONS = extensions()
setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
