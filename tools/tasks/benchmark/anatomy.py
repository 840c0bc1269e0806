"""Where the time of a network's blocks goes: the operators of one call, by PyTorch's profiler, given to named parts.

Forward, the operators that a block calls are known by their order: what stands between two landmarks (a LayerNorm, the
Hadamard convolution, the aggregation) belongs to one part, whoever computes it. Backward, every node of the graph has
the sequence number of the operator that made it, so that it belongs to that one's part.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

import torch
from timm.models.volo import ClassBlock, Downsample, Outlooker, Transformer
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from elsa.models import ELSABlock
from elsa.models.elsa import LocalBlock
from elsa.models.layers import PatchMerging, WindowBlock

BLOCKS = (LocalBlock, WindowBlock, Transformer, Outlooker, ClassBlock)
ELSA_PARTS = ("projection", "Hadamard convolution", "logits", "aggregation", "output projection")
PARTS = ("norms", *ELSA_PARTS, "attention", "MLP", "residuals")
EMBEDDING, MERGING, REST = "patch embedding", "patch merging", "head and loss"
UPDATE, BETWEEN, KEEPING = "optimizer and average", "clipping", "gradients kept"
OUTSIDE, UNASSIGNED = "", "unassigned"  # a stage, a part
# Adding a branch to the map, with stochastic depth.
JOINING = {"aten::add", "aten::add_", "aten::mul", "aten::div_", "aten::bernoulli_", "aten::new_empty"}
MARK, NODE = "elsa part: ", "autograd::engine::evaluate_function: "
Key = tuple[str, str]  # stage and part


def mark_parts(network: nn.Module) -> None:
    """Has the profiler see blocks, patch embedding and patch merging; in place."""
    stages: dict[str, str] = {}
    for name, module in network.named_modules():
        if isinstance(module, BLOCKS):
            stage = stages.setdefault(name.rpartition(".")[0], f"stage {len(stages) + 1}")
            kind = "ELSA" if isinstance(module, ELSABlock) else "other"
            _mark(module, f"block|{stage}|{kind}")
        elif isinstance(module, (PatchMerging, Downsample)):
            _mark(module, f"{MERGING}||")
        elif name == "patch_embed":
            _mark(module, f"{EMBEDDING}||")


def _mark(module: nn.Module, text: str) -> None:
    forward = module.forward

    @wraps(forward)
    def marked(*args: Any, **options: Any) -> Any:
        with record_function(MARK + text):
            return forward(*args, **options)

    module.forward = marked


def profiled(call: Callable[[], None], device: torch.device) -> dict[Key, float]:
    """Seconds of each part of one call, what is unassigned included, so that they add up to its time."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        with record_function("whole"):
            call()
        if gpu:
            torch.cuda.synchronize(device)
    return assign(profiler.events(), gpu)


def assign(events: Iterable[Any], gpu: bool) -> dict[Key, float]:
    """Parts of a profile whose call is marked "whole".

    Args:
        gpu: counts the time of kernels instead of the processor's.
    """
    whole = next(event for event in events if event.name == "whole" and event.cpu_parent is None)

    def seconds(event: Any) -> float:
        return 1e-6 * (event.device_time_total if gpu else event.cpu_time_total)

    spent: dict[Key, float] = defaultdict(float)
    makers: list[tuple[int, Key]] = []  # first sequence number of an operator, and its part, in order
    sections = {"forward": _forward, "backward": None, "update": None}
    for child in _ordered(whole.cpu_children):
        if child.name == "forward":
            for event, key in _forward(child):
                spent[key] += seconds(event)
                if event.sequence_nr >= 0:
                    makers.append((event.sequence_nr, key))
        elif child.name == "update":
            spent[OUTSIDE, UPDATE] += seconds(child)
        elif child.name not in sections:
            spent[OUTSIDE, BETWEEN] += seconds(child)
    numbers = [number for number, _ in makers]
    for child in whole.cpu_children:
        for node in child.cpu_children if child.name == "backward" else ():
            key = _maker(node, numbers, makers)
            sums = sum(seconds(event) for event in node.cpu_children if event.name in ("aten::add", "aten::add_"))
            branches = (key[0], "residuals") if key[0] else key  # gradients meet where a map goes two ways
            spent[key] += seconds(node) - sums
            spent[branches] += sums
    spent[OUTSIDE, UNASSIGNED] = seconds(whole) - sum(spent.values())
    return dict(spent)


def _maker(node: Any, numbers: list[int], makers: list[tuple[int, Key]]) -> Key:
    """The part whose operator made a node of the graph: the last one that began with its number or a smaller one."""
    if not node.name.startswith(NODE):
        return OUTSIDE, REST
    if node.sequence_nr < 0:
        return OUTSIDE, KEEPING
    place = bisect.bisect_right(numbers, node.sequence_nr)
    return makers[place - 1][1] if place else (OUTSIDE, REST)


def _forward(section: Any) -> Iterator[tuple[Any, Key]]:
    """Operators of the forward pass, outermost, in order, and the part of each."""
    for event in _ordered(section.cpu_children):
        if not event.name.startswith(MARK):
            yield event, (OUTSIDE, REST)
            continue
        what, stage, kind = event.name.removeprefix(MARK).split("|")
        inside = _ordered(event.cpu_children)
        if what == "block":
            parts = parts_of_block([_name(one) for one in inside], kind == "ELSA")
            yield from ((one, (stage, part)) for one, part in zip(inside, parts, strict=True))
        else:
            yield from ((one, (OUTSIDE, what)) for one in inside)


def _ordered(events: Iterable[Any]) -> list[Any]:
    return sorted(events, key=lambda event: event.time_range.start)


def _name(event: Any) -> str:
    """An operator's name; of what calls one of ours, that one's."""
    below = [event]
    while below:
        one = below.pop()
        if one.name.startswith("elsa::"):
            return one.name
        below += one.cpu_children
    return event.name


def parts_of_block(names: list[str], is_elsa: bool) -> list[str]:
    """The part of each operator of a pre-norm block, by their order."""
    parts, norms = [], 0
    part = ELSA_PARTS[0] if is_elsa else "attention"
    for name in names:
        if name == "aten::layer_norm":
            norms += 1
            parts.append("norms")
            part = "MLP" if norms == 2 else part
            continue
        if part == "projection" and name in ("aten::mul", "elsa::hadamard_forward"):
            part = "Hadamard convolution"
        elif part == "logits" and name == "elsa::attention_forward":
            part = "aggregation"
        parts.append(part)
        if part == "Hadamard convolution" and name in ("aten::gelu", "elsa::hadamard_forward"):
            part = "logits"
        elif part == "aggregation":
            part = "output projection"
    second = len(parts) - 1 - parts[::-1].index("norms") if norms == 2 else len(parts)
    for end in (second, len(parts)):
        while end and names[end - 1] in JOINING and parts[end - 1] != "norms":
            end -= 1
            parts[end] = "residuals"
    return parts
