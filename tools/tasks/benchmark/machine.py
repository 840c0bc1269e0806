"""What a measurement was made on, and where it goes."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from elsa.core import make_folder, write_json
from elsa.kernels import backend_info


def describe(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "torch": torch.__version__, "kernels": backend_info(),
            "cpus": len(cores())}  # fmt: skip


def cores() -> list[int]:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def write_results(
    folder: Path, name: str, record: dict[str, Any], draw: Callable[[list, Path], None] | None = None
) -> None:
    """Writes NAME.json, and NAME.png of its ``rows`` where they can be drawn, into a folder, and says so."""
    make_folder(folder)
    written = [folder / f"{name}.json"]
    write_json(written[0], record)
    if draw is not None:
        written.append(folder / f"{name}.png")
        draw(record["rows"], written[1])
    print("wrote " + " and ".join(map(str, written)))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
