"""One file of a checkpoint, sharded or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elsa.core import CheckpointError, ConfigError, check_writable, logger, write_then_rename
from elsa.core.archive import write_tensors
from elsa.engine import Runtime
from elsa.engine.checkpoint import read_run, told_of
from elsa.engine.shards import STATE, assemble, read_last

WEIGHTS = {"auto": ("state_dict_ema", "state_dict"), "model": ("state_dict",), "ema": ("state_dict_ema",)}
ENDINGS = (".safetensors", ".pt")


def convert(source: Path, output: Path, weights: str, overwrite: bool, half: bool = False) -> None:
    """Writes ``output``: weights with class names and recipe, or everything, as its ending says.

    Args:
        source: a run's folder (its newest checkpoint that is whole counts), a sharded checkpoint, or a run's file.
        weights: of ``WEIGHTS``.
        half: writes weights as float16, of half the size.

    Raises:
        ConfigError: another ending, a file that is there, weights that the checkpoint has not, or that are too large
            for float16.
        CheckpointError: absent, damaged, or no checkpoint of a run.
    """
    if output.suffix not in ENDINGS:
        raise ConfigError(f"--output {output} must end in {' or '.join(ENDINGS)}")
    if output.exists() and not overwrite:
        raise ConfigError(f"--output {output} exists; --overwrite replaces it")
    check_writable(output.parent)
    path, content = _read(source)
    if output.suffix == ".pt":
        if weights != "auto":
            raise ConfigError(f"--weights {weights} has no effect on .pt: it has all that the training goes on from")
        if half:
            raise ConfigError("--half has no effect on .pt: it has all that the training goes on from")
        write_then_rename(output, lambda beside: torch.save(content, beside))
    else:
        entry = next((name for name in WEIGHTS[weights] if name in content), None)
        if entry is None:
            raise ConfigError(f"--weights {weights}: {path} has no average of the weights")
        tensors = {name: tensor.contiguous() for name, tensor in content[entry].items()}
        if half:
            tensors = {name: _as_half(name, tensor) for name, tensor in tensors.items()}
        write_then_rename(output, lambda beside: write_tensors(beside, tensors, told_of(content)))
        logger.info("%s has %s of %s", output, "the average of the weights" if "ema" in entry else "the weights", path)
    logger.info("%s, after step %d: %.1f MB", output, content["step"], output.stat().st_size / 1e6)


def _as_half(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    small = tensor.half()
    if not torch.isfinite(small).all():
        raise ConfigError(f"--half: {name} reaches {tensor.abs().max():.3g}, and float16 65504")
    return small


def _read(source: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that is meant, and what ``last.pt`` would hold of it."""
    path = source
    if source.is_dir() and not (source / STATE).is_file():
        found = read_last(source, Runtime(0, 1, torch.device("cpu")))
        if found is None:
            raise CheckpointError(f"{source} holds no checkpoint of a run")
        path = found[0]
    return path, assemble(path) if path.is_dir() else read_run(path)
