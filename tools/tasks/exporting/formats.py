"""The formats: each writes a file of a network, and gives how the file computes, read again."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elsa.core import ConfigError, to_json, without_warnings
from elsa.core.archive import write_tensors
from elsa.kernels.portable import portable_program, sizes_may_be_one
from elsa.models import load_pretrained

from .pooling import pool_by_products
from .subject import Call, Subject, as_tuple

ENTRY = "elsa.json"  # of a program's or a library's archive; in ONNX's and safetensors' metadata "elsa"
MOST_IMAGES = 4096  # of a batch, for what is compiled
# Of an image, likewise: two positions at stride 32 are the least; a size of training below it is the shortest.
SHORTEST_SIDE, LONGEST_SIDE = 33, 8192


def graph_inputs(subject: Subject, any_size: bool) -> tuple[tuple[Tensor], tuple[dict[int, Any]]]:
    """Images that a graph is traced with, and which of their sizes may be others."""
    sizes = {0: torch.export.Dim("batch", min=1, max=MOST_IMAGES)}
    height, width = subject.size
    if any_size:
        limits: dict[str, Any] = dict(min=min(SHORTEST_SIDE, *subject.size), max=LONGEST_SIDE)
        sizes |= {2: torch.export.Dim("height", **limits), 3: torch.export.Dim("width", **limits)}
        # Nothing is computed of them. They are so large that no map, however often halved, has a single window, and
        # no two sizes are alike: the graph would take either for a rule.
        height, width = height + 1024, width + 1120
    return (torch.zeros(2, subject.channels, height, width),), (sizes,)


class InBfloat16(nn.Module):
    """A network in bfloat16 between images and outputs in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(found.float() for found in as_tuple(self.network(images.bfloat16())))


def network_of(subject: Subject, dtype: str) -> nn.Module:
    """What a graph is traced of."""
    network = pool_by_products(subject.called)
    return InBfloat16(network).eval() if dtype == "bfloat16" else network


# ---- (subject, file, whether for images of any size, type, quantisation) → how the file computes


def write_weights(subject: Subject, path: Path, any_size: bool, dtype: str, quantize: str | None) -> Call:
    kind = getattr(torch, dtype)
    tensors = {
        name: (tensor.to(kind) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in subject.network.state_dict().items()
    }
    write_tensors(path, tensors, {"elsa": to_json(subject.about), "arch": subject.name})
    again = copy.deepcopy(subject.network)
    load_pretrained(again, path)
    called = subject.part(again)
    return lambda images: as_tuple(called(images))


def _program(subject: Subject, any_size: bool, dtype: str) -> torch.export.ExportedProgram:
    images, sizes = graph_inputs(subject, any_size)
    return portable_program(network_of(subject, dtype), images, sizes)


def write_program(subject: Subject, path: Path, any_size: bool, dtype: str, quantize: str | None) -> Call:
    program = _program(subject, any_size, dtype)
    program.example_inputs = ((subject.images(subject.shapes[0]),), {})  # which the file holds
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={ENTRY: to_json(subject.about)})
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda images: as_tuple(module(images))


def write_library(subject: Subject, path: Path, any_size: bool, dtype: str, quantize: str | None) -> Call:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    told = {"aot_inductor.metadata": {"elsa": to_json(subject.about)}}
    program = _program(subject, any_size, dtype)
    with sizes_may_be_one():
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=told)
    library = aoti_load_package(str(path))
    return lambda images: as_tuple(library(images))


def write_onnx(subject: Subject, path: Path, any_size: bool, dtype: str, quantize: str | None) -> Call:
    import onnx
    import onnxruntime

    images, sizes = graph_inputs(subject, any_size)
    names: dict[str, Any] = dict(input_names=["images"], output_names=list(subject.outputs))
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            network_of(subject, dtype), images, dynamo=True, dynamic_shapes=sizes, external_data=False, verbose=False,
            **names,
        )  # fmt: skip
    assert program is not None
    graph = program.model_proto
    if quantize:
        graph = _in_int8(graph, path)
    onnx.helper.set_model_props(graph, {"elsa": to_json(subject.about)})
    onnx.save(graph, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # it is compared with PyTorch
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> tuple[Tensor, ...]:
        found = session.run(list(subject.outputs), {"images": images.numpy()})
        return tuple(torch.from_numpy(np.asarray(one)) for one in found)

    return call


def _in_int8(graph: Any, path: Path) -> Any:
    """The graph with the linear layers' weights as 8-bit integers, each column with a scale of its own; their inputs
    are rounded when they are there.

    Raises:
        ConfigError: it has none.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before, after = path.with_name("float.onnx"), path.with_name("integer.onnx")
    onnx.save(graph, before)
    with _quiet():
        quantize_dynamic(before, after, ["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8)
    found = onnx.load(after)
    if not any(node.op_type.endswith("Integer") for node in found.graph.node):
        raise ConfigError("--quantize int8: the graph has no linear layer that could be quantised")
    return found


Writer = Callable[[Subject, Path, bool, str, str | None], Call]
WRITERS: dict[str, Writer] = {
    "onnx": write_onnx,
    "torch": write_program,
    "aoti": write_library,
    "safetensors": write_weights,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter logs of itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root", "")]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with without_warnings():
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)
