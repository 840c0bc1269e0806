"""Reading torch and safetensors files without executing anything in them, verified against their checksums."""

from __future__ import annotations

import argparse
import json
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
from .log import logger

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


class StandIn:
    """Takes the place of an object that a published file holds beside its weights; does nothing, keeps nothing."""

    def __new__(cls, *_arguments: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        """Whatever the object was made of."""

    def __setstate__(self, _state: Any) -> None:
        """Whatever it held."""


# Told by name: what mmengine writes of a training's log, numpy's arrays, dates, paths and configurations. The names
# stand for ``StandIn`` alone, so that nothing of theirs is imported or run, ``builtins.getattr`` least of all.
STOOD_IN = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    "numpy.ndarray",
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"mmengine.config.config.{name}" for name in ("Config", "ConfigDict")),
    *(f"mmcv.utils.config.{name}" for name in ("Config", "ConfigDict")),
    *("yacs.config.CfgNode", "addict.addict.Dict"),
)
SAFE_CLASSES += [(StandIn, name) for name in STOOD_IN]

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
CHECKSUM, ARCH = "crc32", "arch"  # in the metadata of our .safetensors files, and of ours alone
ENDINGS = (".pt", ".pth", ".pth.tar", ".safetensors")
HUB_WEIGHTS = "model.safetensors"  # of a folder as model hubs have them
# The files of a folder that can be evaluated, a run's or a hub's, the better first.
OF_A_RUN = ("best.pt", "last.pt", "best.safetensors", "last.safetensors", HUB_WEIGHTS)


def checkpoint_file(path: Path) -> Path:
    """The file itself; of a run's folder its best checkpoint, else its last; of a hub's its weights.

    Raises:
        CheckpointError: no such file, or a folder without one.
    """
    try:
        if path.is_dir():
            found = next((path / name for name in OF_A_RUN if (path / name).is_file()), None)
            if found is None:
                raise CheckpointError(
                    f"checkpoint {path} is a folder without {' or '.join(OF_A_RUN)}{_listed(path, 'it holds')}"
                )
            logger.info("%s is a folder: taking its %s", path, found.name)
            return found
        if path.is_file():
            return path
        if path.exists():
            raise CheckpointError(f"checkpoint {path} is no file")
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {path} cannot be read: {getattr(error, 'strerror', error)}") from error
    raise CheckpointError(f"checkpoint {path} does not exist{_listed(path.parent, 'the folder has')}")


def _listed(folder: Path, words: str) -> str:
    """The checkpoints in a folder, in words; empty where there are none."""
    beside = sorted(p.name for p in folder.glob("*") if p.name.endswith(ENDINGS))
    return f"; {words} {', '.join(beside[:5])}" if beside else ""


def read_archive(path: str | Path, trust: bool | None = False) -> dict[str, Any]:
    """Reads a .safetensors or torch file on the CPU.

    Args:
        path: the file, or a run's folder, see ``checkpoint_file``.
        trust: allows pickled objects beyond tensors, plain containers and ``SAFE_CLASSES``: the file may then run
            code. Without it such a file is refused and nothing in it is executed. None: without it, and where nobody
            can ask for it, so that no message advises it.

    Returns:
        What the file holds; of a .safetensors file its tensors, or where it tells more than them, as ours do,
        ``{"state_dict": tensors, "classes": …, …}``.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or would run code.
    """
    path = checkpoint_file(Path(path))
    try:
        _check_beginning(path)
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
                f"checkpoint {path} holds pickled code{what}, which could run anything; it was not executed"
                + (". If you know where the file comes from, pass --trust-checkpoint" if trust is not None else "")
            ) from error
        raise CheckpointError(f"checkpoint {path} is truncated or no checkpoint") from error
    except PermissionError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except UNREADABLE as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path} is truncated or no checkpoint: {first}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _check_beginning(path: Path) -> None:
    """Raises CheckpointError for what a download often leaves in a checkpoint's place."""
    with path.open("rb") as stream:
        beginning = stream.read(256)
    if not beginning:
        raise CheckpointError(f"checkpoint {path} is an empty file: it was truncated, or its download failed")
    if beginning.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"checkpoint {path} is git-lfs's note of a file, not the file: run git lfs pull")
    if re.match(rb"\s*<(!doctype|html|\?xml|head|body)", beginning, re.IGNORECASE):
        raise CheckpointError(f"checkpoint {path} is a web page, not a checkpoint: open its address in a browser")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes a .safetensors file with metadata and a checksum of both."""
    metadata = {**about, CHECKSUM: _checksum(tensors, about)}
    # Not save_file, which writes a file of another name first: a killed process would leave that behind.
    path.write_bytes(safetensors.torch.save(dict(tensors), metadata=metadata))


def _read_tensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as stream:
        about = dict(stream.metadata() or {})
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  no mapping
    if CHECKSUM not in about and ARCH not in about:
        return tensors
    if about.pop(CHECKSUM, "none") != _checksum(tensors, about):
        raise CheckpointError(f"checkpoint {path} is damaged: it does not have the checksum that it names")
    return {"state_dict": tensors, **{name: _plain(text) for name, text in about.items()}} if about else tensors


def _plain(text: str) -> Any:
    """The value that a text is as JSON, or the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """CRC-32 over metadata, names, types, shapes and bytes, in the order of the names."""
    total = zlib.crc32(repr(sorted(about.items())).encode())
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
