"""torch, GPUs and their driver, the compiled operators, apex."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .finding import NOTE, OK, PROBLEM, Case, Finding
from .machine import PIP, requirement

SECONDS = 30.0  # that nvidia-smi may take
HIDES = "CUDA_VISIBLE_DEVICES"
SOURCES = Path(__file__).resolve().parents[3]


def torch(case: Case) -> Iterator[Finding]:
    """torch, torchvision and timm: whether they can be imported, together."""
    for name in ("torch", "torchvision", "timm"):
        try:
            module = importlib.import_module(name)
        except Exception as error:
            wanted = "torch torchvision" if name == "torchvision" else name
            cure = f"{PIP} --force-reinstall {' '.join(repr(requirement(part)) for part in wanted.split())}"
            yield Finding(name, PROBLEM, f"cannot be imported: {reason(error)}", cure)
            return
        cuda = module.version.cuda if name == "torch" else None
        yield Finding(name, OK, f"{module.__version__}{f', built for CUDA {cuda}' if cuda else ''}")


def gpus(case: Case) -> Iterator[Finding]:
    import torch

    seen, driver, cuda = ask_driver()
    if torch.cuda.is_available():
        yield Finding("driver", OK, f"{driver or 'unknown'}, for CUDA {cuda or 'unknown'} at most")
        for number in range(torch.cuda.device_count()):
            yield _try_gpu(number)
    elif seen:
        yield _why_unseen(seen, driver, cuda)
    else:
        mps = getattr(torch.backends, "mps", None)
        other = "; torch sees Apple's GPU (--device mps)" if mps and mps.is_available() else ""
        yield Finding("GPU", OK, f"no NVIDIA GPU: the processor computes{other}")


def ask_driver() -> tuple[list[str], str, str]:
    """What nvidia-smi tells: names of the GPUs, the driver's version, the newest CUDA it runs; nothing without it."""
    if shutil.which("nvidia-smi") is None:
        return [], "", ""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SECONDS, check=False)
        table = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return [], "", ""
    names = re.findall(r"^GPU \d+: (.+?)(?: \(|$)", listed.stdout, re.MULTILINE)
    found = [re.search(rf"{name}:? +([\d.]+)", table) for name in ("Driver Version", r"CUDA(?: UMD)? Version")]
    return names, *(match[1] if match else "" for match in found)


def _why_unseen(seen: list[str], driver: str, cuda: str) -> Finding:
    """Why torch does not see GPUs that the driver knows."""
    import torch

    built, names = torch.version.cuda, ", ".join(seen)
    if built is None:
        fits = f"for CUDA {cuda} or older" if cuda else "with CUDA"
        text = f"{names}, but torch {torch.__version__} is a build without CUDA: install one {fits}"
        return Finding("GPU", PROBLEM, text, f"{PIP} --force-reinstall 'torch' 'torchvision'")
    if HIDES in os.environ:
        return Finding("GPU", PROBLEM, f"{names}, hidden by {HIDES}={os.environ[HIDES]!r}", f"unset {HIDES}")
    if cuda and _number(cuda)[0] < _number(built)[0]:
        text = f"{names}, but driver {driver} is for CUDA {cuda} at most, and torch was built with {built}"
        return Finding("GPU", PROBLEM, text, f"install a newer driver, or a torch that was built for CUDA {cuda}")
    try:
        torch.cuda.init()
        said = "torch says nothing of the cause"
    except Exception as error:
        said = reason(error)
    text = f"{names}, but torch cannot use them: {said}"
    return Finding("GPU", PROBLEM, text, "sudo modprobe nvidia_uvm; in a container: docker run --gpus all")


def _try_gpu(number: int) -> Finding:
    """A GPU beside the architectures that torch and the kernels were built for, and a sum on it."""
    import torch

    subject = f"GPU {number}"
    properties = torch.cuda.get_device_properties(number)
    capability = (properties.major, properties.minor)
    memory = properties.total_memory / 2**30
    text = f"{properties.name}, {memory:.0f} GiB, architecture {properties.major}.{properties.minor}"
    built = torch.cuda.get_arch_list()
    if not covers(built, capability):
        text += f"; torch was built for {', '.join(built)}"
        return Finding(subject, PROBLEM, text, f"{PIP} --force-reinstall a torch that was built for this GPU")
    try:
        torch.ones(1, device=f"cuda:{number}").add_(1).item()
    except Exception as error:
        return Finding(subject, PROBLEM, f"{text}; it does not compute: {reason(error)}", "nvidia-smi")
    return Finding(subject, OK, text)


def covers(built: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether code for these architectures runs on a GPU.

    Args:
        built: as torch writes them, "sm_90", "compute_100", or as TORCH_CUDA_ARCH_LIST does, "9.0", "10.0+PTX".
    """
    for name in built:
        match = re.fullmatch(r"(?:(sm|compute)_(\d+)(\d)|(\d+)\.(\d))([af]?)(\+PTX)?", name)
        if match is None:
            continue
        target = (int(match[2] or match[4]), int(match[3] or match[5]))
        is_binary, is_ptx = match[1] != "compute", match[1] == "compute" or bool(match[7])
        if match[6] == "a":  # for one architecture and no other
            if target == capability:
                return True
        elif (is_binary and target[0] == capability[0] and target <= capability) or (is_ptx and target <= capability):
            return True
    return False


def operators(case: Case) -> Iterator[Finding]:
    """Which backends of the operators can run, and whether they do."""
    import torch

    from elsa.kernels import backend_info
    from elsa.kernels.library import cuda_architectures

    info = backend_info()
    if forced := os.environ.get("ELSA_BACKEND"):
        yield Finding("operators", NOTE, f"ELSA_BACKEND={forced}: no other backend is used", "unset ELSA_BACKEND")
    has_gpu = torch.cuda.is_available()
    for name, device in (("cpu", "cpu"), ("cuda", "cuda")):
        subject = f"operators, {name}"
        if info[name] != "available":
            matters = name == "cpu" or has_gpu
            text = f"{info[name]}{'; the reference computes instead, slowly' if matters else ''}"
            yield Finding(subject, NOTE if matters else OK, text, rebuild() if matters else "")
            continue
        built = cuda_architectures() or "GPUs that the build did not note"
        details = info["cpu_instruction_set"] if name == "cpu" else f"built for {built}"
        yield Finding(subject, OK, f"available, {details}")
        for number in range(torch.cuda.device_count() if name == "cuda" else 1):
            yield from _try_operator(f"{device}:{number}", subject)


def _try_operator(device: str, subject: str) -> Iterator[Finding]:
    import torch

    from elsa.kernels import elsa_attention

    value, logits = torch.rand(1, 3, 3, 2, device=device), torch.zeros(1, 3, 3, 9, device=device)
    try:
        out = elsa_attention(value, logits, num_heads=1, kernel_size=3, backend=device.partition(":")[0])
        right = bool((out[0, 1, 1] - value.mean((0, 1, 2))).abs().max() < 1e-4)
        said = "" if right else "computes something else than the reference"
    except Exception as error:
        said = reason(error)
    if said:
        yield Finding(subject, PROBLEM, f"on {device}: {said}", rebuild(_capability(device)))


def _capability(device: str) -> str:
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability(device))) if device.startswith("cuda") else ""


def rebuild(architecture: str = "") -> str:
    """The command that compiles the operators anew; ``architecture``: "9.0", where it is known."""
    chosen = f"TORCH_CUDA_ARCH_LIST={architecture} " if architecture else ""
    place = str(SOURCES) if (SOURCES / "setup.py").is_file() else "PATH_OF_THE_SOURCES"
    return f"{chosen}{PIP} --no-build-isolation --no-deps --force-reinstall {place}"


def apex(case: Case) -> Iterator[Finding]:
    """NVIDIA's apex, which a recipe may ask for; PyPI's package of that name is another."""
    if importlib.util.find_spec("apex") is None:
        if not _asks_for_apex(case):
            yield Finding("apex", OK, "not installed; mixed precision is torch's own unless a recipe asks for apex")
            return
        from elsa.engine import apex as ours

        yield Finding("apex", PROBLEM, "not installed, and the recipe asks for it", ours.INSTALL)
        return
    from elsa.engine import apex as ours

    level = PROBLEM if _asks_for_apex(case) else NOTE
    if place := ours.impostor():
        cure = f"{sys.executable} -m pip uninstall -y apex"
        yield Finding("apex", level, f"what is installed in {place} is another package than NVIDIA's", cure)
        return
    for part, names in (("optimizers", ("FusedAdam", "FusedLAMB")), ("amp", ours.AMP)):
        if lacking := ours.lacking(part, names):
            cure = ours.INSTALL_AMP if part == "amp" else ours.INSTALL
            yield Finding(f"apex.{part}", level, lacking, cure)
        else:
            yield Finding(f"apex.{part}", OK, "available")


def _asks_for_apex(case: Case) -> bool:
    if case.config is None:
        return False
    try:
        values = case.recipe()[1].values
    except Exception:  # told by the check of the recipe
        return False
    return any(isinstance(value, str) and value.lower().startswith("apex") for value in values.values())


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def reason(error: BaseException) -> str:
    """The last line of an error, which is the cause of most."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'without a message'}"
