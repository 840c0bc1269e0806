"""A classifier for other runtimes: written, read again, and compared with PyTorch before it gets its name."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from elsa.core import (
    ConfigError,
    TrainingError,
    __version__,
    check_writable,
    logger,
    make_folder,
    sha256,
    to_json,
    write_json,
    write_then_rename,
)
from elsa.core.archive import write_tensors
from elsa.data import image_size
from elsa.engine import Recipe
from elsa.engine.compiling import check_compiler
from elsa.kernels import portable
from elsa.models import load_pretrained, read_checkpoint

from .benchmark.measure import cpu_seconds, shortest
from .checkpoints import class_names
from .networks import build_model

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "aoti": ".pt2", "safetensors": ".safetensors"}
ENTRY = "elsa.json"  # of a program's or a library's archive; in ONNX's and safetensors' metadata "elsa"
MOST_IMAGES = 4096  # of a batch, for what is compiled
BATCHES = (1, 3)  # that are compared
TOLERANCE = 1e-4  # of the largest logit, in float32
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Call = Callable[[Tensor], Tensor]


def export_classifier(recipe: Recipe, args: argparse.Namespace) -> None:
    """Writes the network of a checkpoint, and beside it how images are prepared.

    Raises:
        ConfigError: a format or file that cannot be, packages that are missing.
        TrainingError: what was written computes something else than PyTorch; nothing is left.
    """
    form = _check(args)
    config = recipe.config
    content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
    model = build_model(config)
    logger.info("%s: %s", args.checkpoint, load_pretrained(model, content, weights=config.EVAL.WEIGHTS))
    model.eval().requires_grad_(False)
    about = describe(config, content, args.checkpoint)
    make_folder(args.output.parent)
    images = torch.randn(max(BATCHES), config.MODEL.IN_CHANS, *image_size(config))
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".", suffix=".tmp") as folder:
        made = Path(folder) / f"network{args.output.suffix}"
        began = time.perf_counter()
        logger.info("%s: %s", args.output, "writing" if form == "safetensors" else "exporting takes some minutes")
        call = _written(form, model, images, made, about)
        told = [] if call is None else _measured(form, call, model, images)
        write_then_rename(args.output, lambda beside: shutil.copyfile(made, beside))
    write_json(args.output.with_name(args.output.name + ".json"), about)
    size, seconds = args.output.stat().st_size / 1e6, time.perf_counter() - began
    logger.info("%s: %.1f MB of %s, written in %.0f s", args.output, size, config.MODEL.NAME, seconds)
    for line in told:
        logger.info("%s", line)


def _written(form: str, model: nn.Module, images: Tensor, path: Path, about: Mapping[str, Any]) -> Call | None:
    """How the file computes that is written; None for weights.

    Raises:
        ConfigError: this network cannot be written in this format.
    """
    try:
        return WRITERS[form](model, images, path, about)
    except OSError:
        raise
    except Exception as error:  # exporters raise whatever a network makes them stumble over
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ConfigError(f"{about['model']} cannot be exported as {form}: {lines[0]}") from error


def _measured(form: str, call: Call, model: nn.Module, images: Tensor) -> list[str]:
    """How far the file is from PyTorch, and how fast, in lines."""
    lines = [f"differs from PyTorch by {compare(call, model, images):.1e} of the largest logit at most"]
    for name, found in _latencies({"PyTorch": model, form: call}, images).items():
        lines.append(
            f"{name:<8} " + ", ".join(f"{1e3 * seconds:.1f} ms for {count}" for count, seconds in found.items())
        )
    return lines


def _check(args: argparse.Namespace) -> str:
    """The format; refused before any work where it cannot be written."""
    if args.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {args.device}: networks are exported, and compared with PyTorch, on the CPU")
    ending = args.output.suffix
    form = args.format or next((name for name, known in FORMATS.items() if known == ending), None)
    if form is None or FORMATS[form] != ending:
        wanted = FORMATS[form] if form else ", ".join(dict.fromkeys(FORMATS.values()))
        raise ConfigError(f"--output {args.output} must end in {wanted}")
    beside = args.output.with_name(args.output.name + ".json")
    for path in (args.output, beside):
        if path.exists() and not args.overwrite:
            raise ConfigError(f"--output {path} exists; --overwrite replaces it")
    check_writable(args.output.parent)
    if form == "onnx" and (missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]):
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: pip install '.[export]'")
    if form == "aoti":
        check_compiler(torch.device("cpu"))
    return form


def describe(config: CfgNode, content: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """How images become the network's input, and what its output means."""
    height, width = image_size(config)
    return {
        "model": config.MODEL.NAME,
        "input": {
            "name": "images",
            "shape": ["batch", config.MODEL.IN_CHANS, height, width],
            "color": "RGB" if config.MODEL.IN_CHANS == 3 else "grey",
            "resize": {"crop": config.EVAL.CROP, "interpolation": config.EVAL.INTERPOLATION},
            "mean": list(config.DATA.MEAN),
            "std": list(config.DATA.STD),
        },
        "output": {"name": "logits", "shape": ["batch", config.MODEL.NUM_CLASSES]},
        "classes": class_names(content) or None,
        "checkpoint": {"file": checkpoint.name, "sha256": sha256(checkpoint)},
        "versions": {"elsa": __version__, "torch": torch.__version__},
    }


# ---- formats: (network, images, file, what it tells of itself) → how the file computes


def _write_weights(model: nn.Module, images: Tensor, path: Path, about: Mapping[str, Any]) -> Call | None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(path, tensors, {"elsa": to_json(about), "arch": about["model"]})
    return None


def _program(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    with torch.no_grad(), portable():
        return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))


def _write_program(model: nn.Module, images: Tensor, path: Path, about: Mapping[str, Any]) -> Call:
    with path.open("wb") as file:
        torch.export.save(_program(model, images), file, extra_files={ENTRY: to_json(about)})
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_library(model: nn.Module, images: Tensor, path: Path, about: Mapping[str, Any]) -> Call:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    told = {"aot_inductor.metadata": {"elsa": to_json(about)}}
    aoti_compile_and_package(_program(model, images), package_path=str(path), inductor_configs=told)
    return aoti_load_package(str(path))


def _write_onnx(model: nn.Module, images: Tensor, path: Path, about: Mapping[str, Any]) -> Call:
    import onnx
    import onnxruntime

    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    names: dict[str, Any] = dict(input_names=["images"], output_names=["logits"])
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            model, (images,), dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False, **names
        )
    assert program is not None
    graph = program.model_proto
    onnx.helper.set_model_props(graph, {"elsa": to_json(about)})
    onnx.save(graph, path)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(np.asarray(session.run(["logits"], {"images": x.numpy()})[0]))


WRITERS = {"onnx": _write_onnx, "torch": _write_program, "aoti": _write_library, "safetensors": _write_weights}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter logs of itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


# ---- what was written


def compare(call: Call, model: nn.Module, images: Tensor) -> float:
    """The largest difference of logits, as a share of the largest logit, over batches of several sizes.

    Raises:
        TrainingError: it is above TOLERANCE.
    """
    worst = 0.0
    for count in BATCHES:
        with torch.no_grad():
            expected, found = model(images[:count]), call(images[:count])
        if found.shape != expected.shape:
            raise TrainingError(f"the exported network gives {tuple(found.shape)} for {tuple(expected.shape)}")
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    if not worst <= TOLERANCE:
        raise TrainingError(f"the exported network differs from PyTorch by {worst:.1e} of the largest logit")
    return worst


def _latencies(calls: Mapping[str, Call], images: Tensor) -> dict[str, dict[str, float]]:
    """Seconds of the fastest of some calls, for each batch, on this machine."""
    found: dict[str, dict[str, float]] = {name: {} for name in calls}
    with torch.no_grad():
        for count in BATCHES:
            part = images[:count]
            bound = {name: (lambda call=call, part=part: call(part)) for name, call in calls.items()}
            for name, seconds in shortest(bound, 0.5, cpu_seconds).items():
                found[name][f"{count} image{'s' * (count > 1)}"] = seconds
    return found
