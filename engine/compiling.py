"""torch.compile in place: what is compiled of a network, how often, and one line where it cannot be."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from elsa.core import ConfigError, TrainingError

from .parallel import blocks

GRAPHS = 8  # of one part: of training and evaluation, of one image and of several, of maps of one size and of any
COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch.fx", "triton")  # where errors are from
OLDEST_GPU = (7, 0)  # that triton compiles for
REMEDY = "TRAIN.COMPILE=false (run.compile=False of a detector or segmentor) trains without torch.compile"


def compile_parts(
    parts: Iterable[nn.Module], dynamic: bool | None = None, backend: str | Callable = "inductor"
) -> None:
    """Has the forward pass of each part compiled as one graph when it is first called, and the backward pass with it.

    In place: names in the state dict stay, a deep copy is compiled, too, and computes with its own weights. Hooks stay
    outside, so that the parts can be sharded by FSDP2 afterwards, and DistributedDataParallel around the model
    exchanges gradients of the first buckets while others are computed.

    Args:
        dynamic: True makes graphs for any size of batch and map; None does so once a second size is met.
        backend: as of torch.compile.
    """
    options: dict[str, Any] = dict(fullgraph=True, dynamic=dynamic, backend=backend)
    # Parts of one class have graphs of their own: to search for the right one among those of all would take time.
    apart = dict(recompile_limit=GRAPHS, isolate_recompiles=True)
    known = inspect.signature(torch.compile).parameters  # an older torch searches
    options |= {name: value for name, value in apart.items() if name in known}
    if backend == "inductor":
        # Stochastic depth as without a compiler, for the same seed. Maps stay as the networks lay them out, channels
        # last: taking (B, H, W, C) for (B, C, H, W), the CPU's compiler would transpose them and copy what is saved.
        options["options"] = {"fallback_random": True, "layout_optimization": False}
    for part in parts:
        part.forward = MethodType(torch.compile(type(part).forward, **options), part)


def parts_to_compile(network: nn.Module, divided: bool, processes: int) -> list[nn.Module]:
    """The whole network as one graph, or its blocks where something happens between them.

    Args:
        divided: the weights are divided among the processes, block by block.
        processes: where several exchange gradients, and blocks are computed a second time in the backward pass (torch
            does not divide a graph of both), blocks are graphs of their own.
    """
    recomputes = any(getattr(module, "grad_checkpointing", False) for module in network.modules())
    return blocks(network) if divided or (recomputes and processes > 1) else [network]


def check_compiler(device: torch.device) -> None:
    """Says beforehand what torch.compile lacks on a device.

    Raises:
        ConfigError: no compiler for it.
    """
    if device.type == "cpu" and shutil.which(named := os.environ.get("CXX", "g++")) is None:
        raise ConfigError(f"on a CPU torch.compile needs a C++ compiler, and {named} (CXX) is not there; {REMEDY}")
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(f"on a GPU torch.compile needs triton, which is not installed; {REMEDY}")
        if torch.cuda.get_device_capability(device) < OLDEST_GPU:
            raise ConfigError(f"torch.compile needs a GPU of compute capability 7.0, this is older; {REMEDY}")


@contextmanager
def compile_errors() -> Iterator[None]:
    """Around everything that calls compiled parts: they are compiled when they are called first.

    Raises:
        TrainingError: a part cannot be compiled, or had to be too often.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(COMPILERS):
            raise
        raise TrainingError(f"torch.compile: {_reason(error)}; {REMEDY}") from error


def _reason(error: Exception) -> str:
    """What a compiler says, in one line: its first, and the one that explains it."""
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return f"a part of the network was compiled {GRAPHS} times, and its input is of yet another kind"
    error = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    explained = [line.removeprefix("Explanation: ") for line in lines[1:] if line.startswith("Explanation: ")]
    return ": ".join([lines[0].rstrip(".:"), *(text.rstrip(".") for text in explained[:1])])
