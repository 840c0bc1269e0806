"""Reading torch and safetensors files without executing anything in them, verified against their checksums."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import CheckpointError

# Harmless classes found in published files: timm 0.4 stores its argparse.Namespace, and metrics are numpy scalars,
# which numpy 1 and numpy 2 write under different names.
_SCALAR = np.float64(0).__reduce__()[0]
SAFE_CLASSES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    *{type(np.dtype(kind)) for kind in np.sctypeDict.values() if np.dtype(kind).kind in "biufc"},
]

# What torch and safetensors raise for files that are damaged or something else altogether.
UNREADABLE = (
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    struct.error,
    safetensors.SafetensorError,
)
CHECKSUM = "crc32"


def read_archive(path: str | Path, trust: bool = False) -> dict[str, Any]:
    """Reads a .safetensors or torch file on the CPU.

    Args:
        path: the file.
        trust: allows pickled objects beyond tensors, plain containers and ``SAFE_CLASSES``: the file may then run
            code. Without it such a file is refused and nothing in it is executed.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or would run code.
    """
    path = Path(path)
    if not _is_file(path):
        endings = (".pt", ".pth", ".pth.tar", ".safetensors")
        beside = sorted(p.name for p in path.parent.glob("*") if p.name.endswith(endings))
        hint = f"; the folder has {', '.join(beside[:5])}" if beside else ""
        raise CheckpointError(f"checkpoint {path} does not exist{hint}")
    try:
        if path.suffix == ".safetensors":
            content = _read_tensors(path)
        elif trust:
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            _verify(path)
            with torch.serialization.safe_globals(SAFE_CLASSES):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # torch says "Unsupported operand" of bytes that are no pickle at all; 149 is a global in pickle protocol 4.
        code = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)|Unsupported operand (149)\b", str(error))
        if code:
            what = f" ({code[1] or code[2]})" if code[1] or code[2] else ""
            raise CheckpointError(
                f"checkpoint {path} holds pickled code{what}, which could run anything; it was not executed. "
                "If you know where the file comes from, pass --trust-checkpoint"
            ) from error
        raise CheckpointError(f"checkpoint {path} is truncated or no checkpoint") from error
    except UNREADABLE as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path} is truncated or no checkpoint: {first}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _is_file(path: Path) -> bool | None:
    """Whether there is such a file; None for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes a .safetensors file with metadata and a checksum of the tensors."""
    metadata = {**about, CHECKSUM: _checksum(tensors)}
    # Not save_file, which writes a file of another name first: a killed process would leave that behind.
    path.write_bytes(safetensors.torch.save(dict(tensors), metadata=metadata))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, "pt") as stream:
        metadata = stream.metadata() or {}
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  no mapping
    if CHECKSUM in metadata and metadata[CHECKSUM] != _checksum(tensors):
        raise CheckpointError(f"checkpoint {path} is damaged: its tensors do not have the checksum that it names")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over names, types, shapes and bytes, in the order of the names."""
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _verify(path: Path) -> None:
    """Raises CheckpointError where a record of a torch file (a zip file since torch 1.6) has another CRC-32."""
    try:
        if not zipfile.is_zipfile(path):
            return  # the older format, which has no checksums
        with zipfile.ZipFile(path) as archive:
            # A record marked as a folder (16) torch would pass over.
            bad = archive.testzip() or next((r.filename for r in archive.infolist() if r.external_attr & 16), None)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error
    if bad is not None:
        raise CheckpointError(f"checkpoint {path} is damaged: {Path(bad).name} does not have its checksum")
