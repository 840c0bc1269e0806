"""Writing checkpoints so that a file is either whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

LAST, BEST = "last", "best"


def write_then_rename(path: Path, write: Callable[[Path], None]) -> None:
    """Calls ``write`` on a name beside ``path``, flushes it to the disk, then renames it over ``path``."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_then_rename(path, lambda beside: beside.write_text(text))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=False) + "\n")


def save_checkpoint(folder: Path, state: dict[str, Any], weights: dict[str, Tensor], is_best: bool) -> None:
    """Writes ``last.pt`` (everything that resuming needs) and ``last.safetensors`` (the weights that were
    evaluated), and with ``is_best`` the same under the name ``best``."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    about = {"arch": state["arch"], "epoch": str(state["epoch"]), "config": json.dumps(state["config"])}
    write_then_rename(folder / f"{LAST}.pt", lambda path: torch.save(state, path))
    write_then_rename(
        folder / f"{LAST}.safetensors", lambda path: safetensors.torch.save_file(tensors, path, metadata=about)
    )
    if is_best:
        for suffix in ("pt", "safetensors"):
            source = folder / f"{LAST}.{suffix}"
            write_then_rename(folder / f"{BEST}.{suffix}", lambda path, source=source: shutil.copyfile(source, path))


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
