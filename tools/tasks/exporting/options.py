"""The options of an export: refused before any work where they cannot be, or would have no effect."""

from __future__ import annotations

import argparse
import importlib.util

import torch

from elsa.core import ConfigError, check_writable
from elsa.engine.compiling import check_compiler

HUB = "hub"
FORMATS = {"onnx": ".onnx", "torch": ".pt2", "aoti": ".pt2", "safetensors": ".safetensors", HUB: ""}
GRAPHS = ("onnx", "torch", "aoti")
SIZES = ("auto", "any", "fixed")
DTYPES = ("float32", "bfloat16")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def add_options(arguments: argparse.ArgumentParser) -> None:
    """Those of all tasks."""
    arguments.add_argument("--format", choices=FORMATS, help="default: what FILE's ending says; hub is a folder")
    arguments.add_argument(
        "--size",
        choices=SIZES,
        default="auto",
        help="of images that a graph takes: any, or the recipe's; auto: any where the network allows it, of aoti the "
        "recipe's",
    )
    arguments.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights, and of what is computed")
    arguments.add_argument("--quantize", choices=("int8",), help="ONNX: linear layers by 8-bit integers")
    arguments.add_argument("--overwrite", action="store_true", help="replace FILE and FILE.json, or the folder")


def check_options(args: argparse.Namespace) -> str:
    """The format.

    Raises:
        ConfigError: a format or file that cannot be, packages that are missing, options that have no effect.
    """
    if args.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {args.device}: networks are exported, and compared with PyTorch, on the CPU")
    form = _format(args)
    if form not in GRAPHS and args.size != "auto":
        raise ConfigError(f"--size {args.size} has no effect on {form}, which holds weights and no graph")
    if args.quantize and form != "onnx":
        raise ConfigError(f"--quantize {args.quantize} is of ONNX files, and this is {form}")
    if args.dtype == "bfloat16" and form == "onnx":
        raise ConfigError(
            "--dtype bfloat16: onnxruntime has no convolution in bfloat16 on CPUs, so that the file could not be "
            "compared; torch, aoti and safetensors have it"
        )
    if args.dtype != "float32" and form == HUB:
        raise ConfigError(f"--dtype {args.dtype} has no effect on {HUB}, which holds the weights as they are")
    check_writable(args.output.parent)
    if form == "onnx" and (missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]):
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if form == "aoti":
        check_compiler(torch.device("cpu"))
    return form


def _format(args: argparse.Namespace) -> str:
    """What --format or the ending says; what is there already stays, unless --overwrite is given."""
    ending = args.output.suffix
    form = args.format or next((name for name, known in FORMATS.items() if known and known == ending), None)
    if form == HUB:
        if args.output.exists() and not args.output.is_dir():
            raise ConfigError(f"--output {args.output} is a file; --format {HUB} writes a folder")
        if args.output.is_dir() and any(args.output.iterdir()) and not args.overwrite:
            raise ConfigError(f"--output {args.output} is not empty; --overwrite replaces what an export wrote there")
        return HUB
    if form is None or FORMATS[form] != ending:
        wanted = FORMATS[form] if form else ", ".join(dict.fromkeys(filter(None, FORMATS.values())))
        folder = "" if form else f", or --format {HUB} say that it is a folder"
        raise ConfigError(f"--output {args.output} must end in {wanted}{folder}")
    for path in (args.output, args.output.with_name(args.output.name + ".json")):
        if path.exists() and not args.overwrite:
            raise ConfigError(f"--output {path} exists; --overwrite replaces it")
    return form
