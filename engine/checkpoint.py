"""The format of checkpoints: what is in them, writing and reading; a file is either whole or not there.

``last.pt``, ``previous.pt`` and ``best.pt`` are torch files that hold tensors and plain containers alone, so that
reading them executes nothing (``weights_only``). Entries:

====================  ===========================================================================================
``format``            int: 3, the version of this table
``task``              str: classification, detection, segmentation
``arch``              str: the model's name (a timm name, or the type of a detector or segmentor)
``config``            {str: plain value}: the recipe, flat, as values; compared, never evaluated
``data``              {"images": int, "classes": [str]}: of the training split
``global_batch``      int: images per optimizer step, which a resumed run keeps
``metric``            str: what the best checkpoint has most of
``step``              int: optimizer steps that are done; ``epoch``: int, whole epochs among them
``last_eval``         int: the step of the last evaluation
``best``              float: the highest metric so far; ``best_step``: int, when
``history``           [{str: number}]: one entry for each evaluation
``loss_sum``          float: of the epoch under way, over ``loss_steps`` (int)
``skipped``           int: steps that changed nothing, their gradients not finite; ``skipped_in_row``: int, lately
``state_dict``        {str: Tensor}: the weights; ``state_dict_ema``: their average where one is kept
``optimizer``         the optimizer's state dict; ``scaler``: that of loss scaling; ``schedule``: that of the schedule
``classes``, ``meta``  class names for readers of any kind; ``meta.dataset_meta`` is where mmengine looks for them
====================  ===========================================================================================

Random numbers need nothing: they are a function of (seed, rank, step) and (seed, epoch, image).

``last.safetensors`` and ``best.safetensors`` hold the weights that were evaluated (the average where there is one),
with what ``told_of`` says as metadata.

Each record of a ``.pt`` file has a CRC-32 (it is a zip file), a ``.safetensors`` file one in its metadata. Both are
verified on reading (``elsa.core.archive``), so a flipped bit or a cut file is noticed; a run is then continued from
``previous.pt``, the file that ``last.pt`` replaced.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elsa.core import CheckpointError, to_json, write_then_rename
from elsa.core.archive import read_archive, write_tensors

from .distributed import Runtime
from .step import TrainState

FORMAT = 3
LAST, PREVIOUS, BEST = "last", "previous", "best"
# A run's checkpoint has these; a file of weights alone has not.
NEEDED: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("format", "step", "epoch", "last_eval", "best_step", "loss_steps"), int),
    **dict.fromkeys(("skipped", "skipped_in_row"), int),
    **dict.fromkeys(("config", "data", "state_dict", "optimizer", "scaler", "schedule"), dict),
    **dict.fromkeys(("best", "loss_sum"), (int, float)),
    **dict.fromkeys(("task", "arch"), str),
    "history": list,
}


def save_checkpoint(folder: Path, state: dict[str, Any], weights: Mapping[str, Tensor], is_best: bool) -> None:
    """Writes ``last.pt`` (everything that resuming needs) and ``last.safetensors`` (the weights that were evaluated),
    and with ``is_best`` the same under the name ``best``.

    ``last.pt`` comes last: a process killed before it leaves a state that will do the same evaluation again and write
    the same best files. The ``last.pt`` that was there becomes ``previous.pt``.
    """

    def save(path: Path) -> None:
        torch.save(state, path)

    last = folder / f"{LAST}.pt"
    save_weights(folder, state, weights, is_best)
    if is_best:
        write_then_rename(folder / f"{BEST}.pt", save)
    if last.exists():
        write_then_rename(folder / f"{PREVIOUS}.pt", lambda path: _same_file(last, path))
    write_then_rename(last, save)


def save_weights(folder: Path, state: Mapping[str, Any], weights: Mapping[str, Tensor], is_best: bool) -> None:
    """Writes ``last.safetensors``, and with ``is_best`` the same under the name ``best``."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    last = folder / f"{LAST}.safetensors"
    write_then_rename(last, lambda path: write_tensors(path, tensors, told_of(state)))
    if is_best:
        write_then_rename(folder / f"{BEST}.safetensors", lambda path: shutil.copyfile(last, path))


def told_of(state: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a .safetensors file of weights: what is there of ``task``, ``arch``, ``epoch``, ``classes``,
    ``config``, ``meta`` and ``recipe``."""
    about = {name: str(state[name]) for name in ("task", "arch") if name in state}
    about |= {
        name: to_json(state[name]) for name in ("epoch", "classes", "config", "meta") if state.get(name) is not None
    }
    if "recipe" in state:
        about["recipe"] = repr(state["recipe"])  # JSON has no tuples, which mm's packages tell from lists
    return about


class WholeCheckpoints:
    """The files above, written by the main process while the others wait.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.folder, self.runtime = folder, runtime

    def save(self, about: Mapping[str, Any], state: TrainState, evaluated: nn.Module, is_best: bool) -> None:
        if self.runtime.is_main:
            save_checkpoint(self.folder, {**about, **state.state_dict()}, evaluated.state_dict(), is_best)
        self.runtime.barrier()

    def last(self) -> Path | None:
        """The checkpoint to go on from, where there is one."""
        path = self.folder / f"{LAST}.pt"
        return path if path.exists() else None

    def finish(self) -> None:
        """All is written already."""


def _same_file(source: Path, path: Path) -> None:
    """A second name for a file where the file system has such, else a copy."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def read_run(path: Path) -> dict[str, Any]:
    """The checkpoint of a run, verified.

    Raises:
        CheckpointError: absent, damaged, weights alone, or of another format.
    """
    content = read_archive(path, trust=None)
    if "optimizer" not in content:
        raise CheckpointError(
            f"{path} has weights only; --resume needs a last.pt. To start from it, set MODEL.PRETRAINED "
            "(of detectors and segmentors pretrained, or model.backbone.pretrained)"
        )
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {content.get('format')}, this version reads {FORMAT}")
    for name, kind in NEEDED.items():
        if not isinstance(content.get(name), kind):
            raise CheckpointError(f"{path} is no checkpoint of a run: its {name} is {content.get(name)!r:.60}")
    return content
