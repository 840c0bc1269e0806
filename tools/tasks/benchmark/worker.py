"""A contestant's own process: told by lines of JSON what to prepare, then to take a turn when it is its turn.

Started by ``crew.Worker`` as ``python -m elsa.tools.tasks.benchmark.worker``, since what a contestant sets must be
there before torch and timm start.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TextIO

import torch
from torch import distributed as dist

from elsa.core import UserError, one_line, seed_everything
from elsa.engine import Precision
from elsa.engine.compiling import compile_errors, compile_parts
from elsa.engine.distributed import Runtime
from elsa.engine.parallel import Parallel
from elsa.kernels import backend_info

from .anatomy import mark_parts, profiled
from .measure import high_water, reset_high_water, resident, timed_calls, trim
from .subjects import AUTOCAST, build, count_forward, inference, random_batch, train_step, use_our_linear


class Contestant:
    """A network made ready for one case.

    Args:
        case: what ``crew.Crew`` sends: device, model, ours, our_linear, task, size, batch, pass, mode, dtype,
            drop_path, threads, cores, count (whether to count operations), rank, world and store (of processes that
            train one network together).
    """

    def __init__(self, case: dict[str, Any]) -> None:
        self.device = torch.device(case["device"])
        self.ready: dict[str, Any] = {}
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        settle(case)
        touch_libraries(self.device)
        trim()
        before = resident(self.device) or 0
        seed_everything(0, "benchmark")
        size = tuple(case["size"])
        network = build(case["model"], case["task"], size, case["drop_path"]).to(self.device)
        batch = random_batch(case["batch"], size, self.device)
        if case["count"]:
            self.ready["flops"] = count_forward(network, batch)
            trim()  # what that took must not serve the calls that are timed
            self.ready["parameters"] = sum(parameter.numel() for parameter in network.parameters())
        if case["our_linear"]:
            use_our_linear(network)
        self._compile(network, case)
        self.network, self.marked = network, False
        self.call = self._caller(network, batch, case)
        self.ready |= self._try(before)

    def _compile(self, network: torch.nn.Module, case: dict[str, Any]) -> None:
        """As our training compiles, and of others as PyTorch does by itself."""
        if case["mode"] == "eager":
            return
        torch.compiler.reset()
        if case["mode"] == "frozen":
            inductor = importlib.import_module("torch._inductor.config")  # takes a second
            inductor.freezing = True
        if case["ours"]:
            compile_parts([network], dynamic=False)
        else:
            network.compile(dynamic=False)

    def _caller(self, network: torch.nn.Module, batch: Any, case: dict[str, Any]) -> Callable[[], None]:
        precision = Precision(self.device.type, AUTOCAST[case["dtype"]])
        if case["pass"] == "inference":
            return inference(network, batch, precision)
        parallel = None
        if case["world"] > 1:
            if not dist.is_initialized():
                store = dist.FileStore(case["store"], case["world"])
                backend = "nccl" if self.device.type == "cuda" else "gloo"
                wait = timedelta(minutes=10)
                dist.init_process_group(backend, store=store, rank=case["rank"], world_size=case["world"], timeout=wait)
            parallel = Parallel(Runtime(case["rank"], case["world"], self.device))
        return train_step(network, batch, precision, case["task"], parallel)

    def _try(self, before: int) -> dict[str, Any]:
        """Two calls that do not count: in the first caches fill and code is compiled, in the second memory is read."""
        began = time.perf_counter()
        with compile_errors():
            self.call()
        first = time.perf_counter() - began
        known = reset_high_water(self.device)
        walls, _ = timed_calls(self.call, 1, self.device)
        most = high_water(self.device) if known else None
        return {"first_seconds": first, "seconds": walls[0], "bytes": None if most is None else max(0, most - before)}

    def turn(self, message: dict[str, Any]) -> dict[str, Any]:
        """Seconds of each of some calls, by the clock on the wall and of this process's processors."""
        settle(message)
        walls, processors = timed_calls(self.call, message["calls"], self.device)
        return {"wall": walls, "cpu": processors}

    def profile(self, message: dict[str, Any]) -> dict[str, Any]:
        """Where the time of one call goes."""
        settle(message)
        if not self.marked:
            mark_parts(self.network)
            self.call()
            self.marked = True
        parts = profiled(self.call, self.device)
        return {"parts": [{"stage": stage, "part": part, "seconds": seconds}
                          for (stage, part), seconds in parts.items()]}  # fmt: skip


def touch_libraries(device: torch.device) -> None:
    """Has libraries take the memory that they take once, and kernels be tried, which is no network's."""
    backend_info()
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.GELU(), torch.nn.Flatten(2), torch.nn.Linear(64, 64)
    )
    layers.to(device)(torch.ones(2, 3, 32, 32, device=device)).sum().backward()
    torch.optim.AdamW(layers.parameters()).step()


def settle(message: dict[str, Any]) -> None:
    """The processor cores and threads of what follows."""
    if message["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, message["cores"])
    if message["threads"]:
        torch.set_num_threads(message["threads"])


def serve(orders: TextIO, answers: TextIO) -> None:
    """Until the orders end."""
    contestant: Contestant | None = None
    for line in orders:
        message = json.loads(line)
        try:
            if message["do"] == "prepare":
                contestant = None
                gc.collect()
                contestant = Contestant(message)
                answer = contestant.ready
            else:
                assert contestant is not None
                answer = {"turn": contestant.turn, "profile": contestant.profile}[message["do"]](message)
        except Exception as error:  # whatever a network stumbles over ends this contestant, and is told in one line
            mendable = isinstance(error, UserError)
            told = one_line(str(error) if mendable else f"{type(error).__name__}: {error}")
            answer = {"error": told, "user": mendable}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asked ends this process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin, answers)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
