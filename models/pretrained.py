"""Loading weights with a report of what was used; see ``elsa.core.archive`` for reading files."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from elsa.core import CheckpointError
from elsa.core.archive import read_archive as read_checkpoint

from .layers import resize_map

MODEL_ENTRIES = ("state_dict", "model", "model_state_dict")
EMA_ENTRIES = ("state_dict_ema", "model_ema", "teacher")
WEIGHTS = ("auto", "model", "ema")
# What wraps a model: DistributedDataParallel and averages, Lightning, torch.compile; and what averages count beside it.
WRAPPERS = ("module.", "model.", "_orig_mod.")
COUNTERS = ("n_averaged", "steps")
BIAS_TABLE = ".relative_position_bias_table"  # of Swin Transformers, in their authors' names and timm's
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class LoadReport:
    """What ``load_pretrained`` did.

    Attributes:
        entry: the entry of the file that was used, "" for a bare state dict.
        loaded, total: tensors loaded, tensors in the model.
        ignored: tensors of the model that kept their values because a pattern said so.
        resized: tensors that the model fitted to its input size.
        cast: types of numbers, other than the model's, that the file's tensors had.
    """

    entry: str
    loaded: int
    total: int
    ignored: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()

    def __str__(self) -> str:
        source = f" from entry {self.entry!r}" if self.entry else ""
        kept = f"; kept as initialised: {', '.join(self.ignored)}" if self.ignored else ""
        resized = f"; resized: {', '.join(self.resized)}" if self.resized else ""
        cast = f"; cast from {', '.join(self.cast)}" if self.cast else ""
        return f"loaded {self.loaded} of {self.total} tensors{source}{kept}{resized}{cast}"


def select_weights(content: dict[str, Any], weights: str = "auto") -> tuple[str, dict[str, Tensor]]:
    """The state dict inside a checkpoint: its entry's name and the tensors, prefixes of wrappers removed.

    Args:
        content: from ``read_checkpoint``: a bare state dict, one of ours, or timm's
            ``{"state_dict": …, "state_dict_ema": …}``.
        weights: "ema", "model", or "auto" for the EMA where there is one.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {WEIGHTS}, got {weights!r}")
    wanted = {"auto": EMA_ENTRIES + MODEL_ENTRIES, "ema": EMA_ENTRIES, "model": MODEL_ENTRIES}[weights]
    entry = next((name for name in wanted if isinstance(content.get(name), dict)), "")
    tensors = content[entry] if entry else content
    if not entry and (weights == "ema" or not any(isinstance(value, Tensor) for value in tensors.values())):
        raise CheckpointError(f"no {' or '.join(wanted)} among the entries {', '.join(map(str, list(content)[:8]))}")
    if stray := [str(name) for name, value in tensors.items() if not (isinstance(name, str) and _is_plain(value))]:
        raise CheckpointError(f"entries that are no tensors with values: {_some(stray)}")
    return entry, _unwrapped(tensors)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, in whatever order and number they come."""
    while tensors:
        inner = {name: value for name, value in tensors.items() if name not in COUNTERS}
        prefix = next((prefix for prefix in WRAPPERS if inner and all(name.startswith(prefix) for name in inner)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in inner.items()}
    # Parts of a model that were compiled alone carry the name within theirs.
    return {name.replace("._orig_mod.", "."): value for name, value in tensors.items()}


@torch.no_grad()
def load_pretrained(
    model: nn.Module,
    checkpoint: str | Path | dict[str, Any],
    *,
    weights: str = "auto",
    ignore: Sequence[str] = (),
    trust: bool = False,
) -> LoadReport:
    """Loads weights into ``model``; every tensor must be there, fit, be finite and be used.

    Only what a model says it can resize may have another shape (``adapt_state_dict``: position embeddings for another
    input size, the position bias for other windows), and the position bias of timm's Swin Transformers, which read
    their authors' files as well.

    Args:
        checkpoint: a file, or its content from ``read_checkpoint``.
        weights: see ``select_weights``.
        ignore: patterns (``head.*``) of tensors that the model keeps and the file's are left out, for example a
            head with other classes. A pattern that matches nothing is an error.
        trust: see ``read_checkpoint``.

    Raises:
        CheckpointError: unreadable, or tensors missing, unexpected, of another shape, quantised or not finite; the
            message lists them.
    """
    name = "checkpoint" if isinstance(checkpoint, dict) else f"checkpoint {checkpoint}"
    content = checkpoint if isinstance(checkpoint, dict) else read_checkpoint(checkpoint, trust)
    entry, tensors = select_weights(content, weights)
    own, tensors = model.state_dict(), _in_timms_names(tensors, model)
    for pattern in ignore:
        if not fnmatch.filter(own, pattern):
            raise CheckpointError(f"pattern {pattern!r} matches no tensor of the model")
    ignored = {tensor for pattern in ignore for tensor in fnmatch.filter([*own, *tensors], pattern)}
    wanted = {key: value for key, value in own.items() if key not in ignored}
    given = {key: value for key, value in tensors.items() if key not in ignored}
    adapted = adapt_state_dict(given, model)
    resized = tuple(
        f"{key} {_size(given[key])} → {_size(adapted[key])}" for key in given if adapted[key].shape != given[key].shape
    )
    given = adapted

    if problems := [*_misfits(wanted, given), *_bad_numbers(wanted, given)]:
        raise CheckpointError(f"{name} does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(given, strict=not ignored)
    kept = tuple(sorted(ignored & own.keys()))
    cast = {_kind(given[key]) for key, value in wanted.items() if given[key].dtype != value.dtype}
    return LoadReport(entry, len(given), len(own), kept, resized, tuple(sorted(cast)))


def _misfits(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> Iterator[str]:
    """Tensors that are missing, unexpected or of another shape, in words."""
    if missing := [key for key in wanted if key not in given]:
        yield f"{len(missing)} missing: {_some(missing)}"
    if unexpected := [key for key in given if key not in wanted]:
        yield f"{len(unexpected)} unexpected: {_some(unexpected)}"
    if misfits := [
        f"{key} is {tuple(given[key].shape)}, the model has {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]:
        yield f"{len(misfits)} of another shape: {_some(misfits)}"


def _bad_numbers(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> Iterator[str]:
    """Tensors that are no plain numbers of the model's kind, or not finite where the model's own are, in words."""
    both = [(key, given[key], own) for key, own in wanted.items() if key in given]
    odd = [
        (key, value, own)
        for key, value, own in both
        if value.is_quantized or value.dtype not in (FLOATS if own.is_floating_point() else FLOATS + WHOLE)
    ]
    if odd:
        listed = [f"{key} is {_kind(value)}, the model has {_kind(own)}" for key, value, own in odd]
        cure = "give the checkpoint before it was quantised or converted"
        yield f"{len(odd)} with numbers of another kind: {_some(listed)} ({cure})"
    broken = [
        key
        for key, value, own in both
        if value.dtype in FLOATS and not value.is_quantized and not _finite(value.to(own.dtype)) and _finite(own)
    ]
    if broken:
        yield f"{len(broken)} that are not finite (NaN or infinity), so that training went wrong: {_some(broken)}"


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all().item())


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def adapt_state_dict(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """A state dict fitted to the model where it knows how: position embeddings to another input size, the bias of
    windows, ours and timm's, to another size of theirs."""
    if isinstance(model, SwinTransformer):
        own = model.state_dict()
        tables = {name: value for name, value in tensors.items() if name.endswith(BIAS_TABLE) and name in own}
        return {**tensors, **checkpoint_filter_fn(tables, model)}
    return model.adapt_state_dict(tensors) if hasattr(model, "adapt_state_dict") else tensors


def _in_timms_names(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The authors' weights of a Swin Transformer as timm's network has them; the tables of its bias as they are."""
    if not isinstance(model, SwinTransformer):
        return tensors
    tables = {name: value for name, value in tensors.items() if name.endswith(BIAS_TABLE)}
    return checkpoint_filter_fn({name: value for name, value in tensors.items() if name not in tables}, model) | tables


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with a value for each element: not sparse, not on the meta device."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def load_backbone(model: Any, checkpoint: str | Path, trust: bool = False) -> LoadReport:
    """Starts a dense backbone from a classifier, or from the backbone of a detector or segmentor.

    What only maps have (``norm0…norm3``) stays as initialised, what only classifiers have (their last norm, their head)
    is left out; every other tensor must be there and fit. An absolute position embedding is brought to the dense layout
    (1, C, H, W); weights of a Swin Transformer, in the names of its authors or of timm, to ours.

    Raises:
        CheckpointError: see ``load_pretrained``.
    """
    entry, tensors = select_weights(read_checkpoint(checkpoint, trust))
    if any(name.startswith("backbone.") for name in tensors):
        tensors = {n.removeprefix("backbone."): value for n, value in tensors.items() if n.startswith("backbone.")}
    if any(name.endswith(BIAS_TABLE) for name in tensors):
        tensors = _from_swin_names(tensors)
    own = model.state_dict()
    given = {name: value for name, value in tensors.items() if name.split(".")[0] not in model.classifier_only}
    table, layout = given.get("absolute_pos_embed"), own.get("absolute_pos_embed")
    if table is not None and layout is not None and table.ndim == 3:
        side = math.isqrt(table.shape[1])
        if side * side != table.shape[1]:
            raise CheckpointError(f"checkpoint {checkpoint}: absolute_pos_embed {tuple(table.shape)} is no square map")
        given["absolute_pos_embed"] = resize_map(table.transpose(1, 2).unflatten(2, (side, side)), layout.shape[2:])
    kept = [name for name in own if name not in given and re.match(model.maps_only, name)]
    try:
        report = load_pretrained(model, {"state_dict": given}, ignore=kept)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} for the backbone: {error}") from error
    return replace(
        report, entry=entry, ignored=tuple(name for name in report.ignored if not name.endswith("relative_id"))
    )


def _from_swin_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swin Transformer's tensors under ours: v, q, k packed in this order, the bias table flipped and transposed,
    the merging of patches in the stage that it ends (timm has it at the head of the next)."""
    timm_layout = "layers.0.downsample.reduction.weight" not in tensors
    ours = {}
    for name, value in tensors.items():
        if name.endswith((".relative_position_index", ".attn_mask")):
            continue
        if ".attn.qkv." in name:
            query, key, content = value.chunk(3)
            name, value = name.replace("qkv", "pre_proj"), torch.cat((content, query, key))
        elif name.endswith(BIAS_TABLE):
            name, value = name.replace(BIAS_TABLE, ".rb"), value.T.flip(1)
        elif ".downsample." in name and timm_layout:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.", 1)
        ours[name.replace(".attn.proj.", ".attn.post_proj.")] = value
    return ours


def _some(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
