"""Checkpoints of divided models: each process writes its part, while the training goes on.

``shards/step-00000120`` in a run's folder holds what ``last.pt`` would after step 120, ``step-00000120-evaluated``
beside it the same after the evaluation that follows:

* ``state.pt``: its entries (see ``checkpoint``) without the divided tensors, ``shards``, the sha256 of the files beside
  it, and ``optimized``, the names of the parameters as the optimizer counts them;
* ``shard-….safetensors``: parts of the parameters, ``state_dict.NAME`` and ``state_dict_ema.NAME``, and of the
  optimizer's state, ``optimizer.KEY.NAME``, as torch.distributed.checkpoint divides them.

The folder gets its name when all of it is written; two of them are kept. Any number of processes reads them. Weights
that were evaluated are whole files as ever: ``last.safetensors`` and ``best.safetensors``.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from elsa.core import CheckpointError, logger, sha256, write_then_rename

from .checkpoint import LAST, PREVIOUS, read_run, save_weights
from .distributed import Runtime
from .parallel import Parallel
from .step import TrainState

FOLDER, STATE, KEPT = "shards", "state.pt", 2
WEIGHTS, OPTIMIZER = ("state_dict", "state_dict_ema"), "optimizer."


class ShardedCheckpoints:
    """Writes the state of a divided run in the background: one save at a time, a further one waits for it.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path, runtime: Runtime, parallel: Parallel) -> None:
        self.folder, self.runtime, self.parallel = folder, runtime, parallel
        self.group: Any = dist.new_group(backend="gloo")  # the saves' own: the loop's messages go on meanwhile
        self.helper = ThreadPoolExecutor(1)
        self.pending: Future | None = None

    def save(self, about: Mapping[str, Any], state: TrainState, evaluated: nn.Module, is_best: bool) -> None:
        """Begins to write; what is written is copied before this returns."""
        self.finish()
        content = {**about, **state.state_dict()}
        tensors = divide(content, state)
        content = _copied(content)
        evaluation = state.last_eval == state.step
        weights = self.parallel.gathered(evaluated) if evaluation else {}
        path = self.folder / FOLDER / f".{folder_name(state.step, evaluation)}.tmp"
        self.runtime.in_main(lambda: _made_anew(path))
        writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
        written = dcp.async_save(tensors, storage_writer=writer, process_group=self.group)
        assert isinstance(written, Future)
        self.pending = self.helper.submit(self._conclude, written, path, content, weights, is_best)

    def _conclude(
        self, written: Future, path: Path, content: dict[str, Any], weights: dict[str, Tensor], is_best: bool
    ) -> None:
        written.result()
        if not self.runtime.is_main:
            return
        if weights:
            save_weights(self.folder, content, weights, is_best)
        content["shards"] = {file.name: sha256(file) for file in sorted(path.glob("*.safetensors"))}
        write_then_rename(path / STATE, lambda beside: torch.save(content, beside))
        final = path.with_name(path.name.removeprefix(".").removesuffix(".tmp"))
        shutil.rmtree(final, ignore_errors=True)  # the same, of a run that was killed and began again before it
        path.replace(final)
        for old in complete(self.folder)[KEPT:]:
            shutil.rmtree(old)

    def last(self) -> Path | None:
        """The checkpoint to go on from, where there is one."""
        return next(iter(complete(self.folder)), None)

    def finish(self) -> None:
        """Waits until what was begun is on the disk, in every process.

        Raises:
            OSError: it could not be written.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        reason = ""
        try:
            pending.result()
        except dcp.CheckpointException as error:
            reason = _reasons(error)
        except (OSError, RuntimeError) as error:
            reason = str(error)
        said = [told for told in self.runtime.gather(reason) if told]
        if said:
            raise OSError(0, said[0].splitlines()[0], str(self.folder / FOLDER))


def _reasons(error: dcp.CheckpointException) -> str:
    return "; ".join(str(failure[0]) for failure in error.failures.values())


def _made_anew(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def _copied(value: Any) -> Any:
    """Containers and tensors that the training does not change any more."""
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def divide(content: dict[str, Any], state: TrainState) -> dict[str, Tensor]:
    """Takes the divided tensors out of the entries of a checkpoint; under the names that they have in shards."""
    tensors: dict[str, Tensor] = {}
    for entry in WEIGHTS:
        if entry in content:
            parts = {name: tensor for name, tensor in content[entry].items() if isinstance(tensor, DTensor)}
            tensors |= {f"{entry}.{name}": tensor for name, tensor in parts.items()}
            content[entry] = {name: tensor for name, tensor in content[entry].items() if name not in parts}
    kept: dict[int, dict[str, Any]] = {}
    names = optimized(state)
    for index, values in content["optimizer"]["state"].items():
        parts = {key: value for key, value in values.items() if isinstance(value, DTensor)}
        tensors |= {f"{OPTIMIZER}{key}.{names[index]}": value for key, value in parts.items()}
        kept[index] = {key: value for key, value in values.items() if key not in parts}
    content["optimizer"], content["optimized"] = {**content["optimizer"], "state": kept}, names
    return tensors


def optimized(state: TrainState) -> list[str]:
    """Names of the parameters in the order in which the optimizer counts them."""
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    return [names[parameter] for group in state.optimizer.param_groups for parameter in group["params"]]


def folder_name(step: int, evaluated: bool) -> str:
    """Of the folder of a checkpoint; in the order in which they are written."""
    return f"step-{step:08}{'-evaluated' * evaluated}"


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder that are whole, the newest first."""
    return sorted((folder / FOLDER).glob("step-*"), reverse=True)


def read_state(path: Path, runtime: Runtime) -> dict[str, Any]:
    """The entries of a sharded checkpoint without the divided tensors, verified: each process looks at some files.

    Raises:
        CheckpointError: in every process: absent, damaged, or another file.
    """
    reason = ""
    try:
        content = read_run(path / STATE)
        for name, told in list(content["shards"].items())[runtime.rank :: runtime.world_size]:
            if not (path / name).is_file():
                raise CheckpointError(f"{path} is damaged: {name} is missing")
            if sha256(path / name) != told:
                raise CheckpointError(f"{path / name} is damaged: its checksum is not the one that was written")
    except CheckpointError as error:
        reason = str(error)
    if said := [told for told in runtime.gather(reason) if told]:
        raise CheckpointError(said[0])
    return {**content, "shards": str(path)}


def read_last(folder: Path, runtime: Runtime) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run's folder that is whole: a sharded one, ``last.pt``, or where they are damaged what
    they replaced; None where there is none.

    Raises:
        CheckpointError: what is there is damaged.
        ConfigError: the processes do not see the same.
    """
    files = [path for path in (folder / f"{LAST}.pt", folder / f"{PREVIOUS}.pt") if path.exists()]
    kinds = (complete(folder), files)
    seen = {"checkpoints": [path.name for paths in kinds for path in paths]}
    runtime.check_same(seen, f"is {folder} on a disk that all share?")
    found, damaged = [], None
    for paths in kinds:
        for path in paths:
            try:
                found.append((path, read_state(path, runtime) if path.is_dir() else read_run(path)))
                break
            except CheckpointError as error:
                logger.warning("%s", error)
                damaged = error
    if not found and damaged is not None:
        raise damaged
    if damaged is not None:
        logger.warning("going on from %s", max(found, key=_step)[0].name)
    return max(found, key=_step, default=None)


def _step(found: tuple[Path, dict[str, Any]]) -> int:
    return found[1]["step"]


def restore(content: dict[str, Any], state: TrainState, parallel: Parallel) -> dict[str, Any]:
    """What ``state.load_state_dict`` takes, of a whole or a sharded checkpoint, for a model however it is spread."""
    parameters = dict(state.model.named_parameters())
    names = optimized(state)

    def like(name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        if name not in parameters or parameters[name].shape != size:
            raise CheckpointError(f"{content['shards']} has {name} of shape {tuple(size)}, which this model has not")
        return torch.zeros_like(parameters[name].detach(), dtype=dtype)

    read = _read_shards(Path(content["shards"]), like, parallel.runtime) if "shards" in content else {}

    def fit(tensors: Mapping[str, Any], like: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            name: parallel.fit(value, like[name]) if _is_like(value, like.get(name)) else value
            for name, value in tensors.items()
        }

    for entry in WEIGHTS:
        if entry in content:
            content = {**content, entry: fit(content[entry], parameters)}
    states = {
        index: fit(values, dict.fromkeys(values, parameters[names[index]]))
        for index, values in content["optimizer"]["state"].items()
    }
    return _completed({**content, "optimizer": {**content["optimizer"], "state": states}}, read, names)


def assemble(path: Path) -> dict[str, Any]:
    """What ``last.pt`` would hold, of a sharded checkpoint, in this process's memory.

    Raises:
        CheckpointError: absent, damaged, or another file.
    """
    alone = Runtime(0, 1, torch.device("cpu"))
    content = read_state(path, alone)
    read = _read_shards(path, lambda name, size, dtype: torch.zeros(size, dtype=dtype), alone)
    whole = _completed(content, read, content["optimized"])
    return {name: value for name, value in whole.items() if name not in ("shards", "optimized")}


def _completed(content: dict[str, Any], read: Mapping[str, Mapping[str, Tensor]], names: list[str]) -> dict[str, Any]:
    """The entries of a checkpoint with what was read of shards."""
    for entry in WEIGHTS:
        if entry in content:
            content = {**content, entry: {**content[entry], **read.get(entry, {})}}
    moments = {kind.removeprefix(OPTIMIZER): found for kind, found in read.items() if kind.startswith(OPTIMIZER)}
    states = {
        index: {**values, **{key: found[names[index]] for key, found in moments.items() if names[index] in found}}
        for index, values in content["optimizer"]["state"].items()
    }
    return {**content, "optimizer": {**content["optimizer"], "state": states}}


def _is_like(value: Any, parameter: Tensor | None) -> bool:
    return isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape


def _read_shards(
    path: Path, like: Callable[[str, torch.Size, torch.dtype], Tensor], runtime: Runtime
) -> dict[str, dict[str, Tensor]]:
    """{entry: {name of a parameter: what the shards hold of it}}, each in a tensor that ``like`` makes."""
    reader = HuggingFaceStorageReader(str(path))
    found: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for key, saved in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(saved, TensorStorageMetadata)
        kind, _, name = key.partition(".")
        if kind == OPTIMIZER.rstrip("."):
            value, _, name = name.partition(".")
            kind = f"{OPTIMIZER}{value}"
        found.setdefault(kind, {})[name] = tensors[key] = like(name, saved.size, saved.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*load in a single process")  # it is meant
        try:
            dcp.load(tensors, storage_reader=reader, process_group=runtime.control, no_dist=runtime.world_size == 1)
        except dcp.CheckpointException as error:  # torch's own, of all processes that failed
            runtime.raise_lost(error)
            raise CheckpointError(f"{path} cannot be read: {_reasons(error)}") from error
    return found
