"""What can be measured, with its options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from .contestants import CONTESTANTS
from .measure import DTYPES, PASSES, Settings
from .options import at_least, counts, device, image_size, subset, thread_counts
from .report import benchmark_operator
from .settings import SETTINGS
from .shapes import DEFAULT_GROUPS, GROUPS


def add_operator(verbs: Any) -> None:
    parser = verbs.add_parser("op", help="the operators", allow_abbrev=False)
    parser.set_defaults(measure=_operator)
    add = parser.add_argument
    groups = f"groups of shapes, or all: {', '.join(GROUPS)} (default {','.join(DEFAULT_GROUPS)})"
    add("--shapes", type=subset(GROUPS, True), default=DEFAULT_GROUPS, metavar="A,B", help=groups)
    beside = f"of {', '.join(CONTESTANTS)}; flex compiles for each shape (default unfold,depthwise)"
    names = subset((*CONTESTANTS, "none"))
    add("--contestants", type=names, default=("unfold", "depthwise"), metavar="A,B", help=beside)
    passes = "forward, backward (= forward and backward together), gradients (= backward alone; default the first two)"
    add("--passes", type=subset(PASSES), default=("forward", "backward"), metavar="A,B", help=passes)
    add("--dtypes", type=subset(DTYPES), default=tuple(DTYPES), metavar="A,B", help="(default fp32,bf16)")
    add("--device", type=device, default=torch.device("cpu"), help="cpu (default), cuda or cuda:N")
    add("--threads", type=thread_counts, metavar="N,all", help="of a CPU (default 1,all)")
    add("--batch", dest="batches", type=counts(1), metavar="N,N", help="(default 2, on a GPU 128)")
    add("--seconds", type=at_least(float, 0.0), default=0.3, help="per contestant and row (default 0.3)")
    add("--memory", type=at_least(int, 0), default=4, help="GiB that the unfold formula may take (default 4)")
    add("--backend", choices=("auto", "cpu", "cuda", "reference"), default="auto")
    add("--output", type=Path, default=Path("runs/benchmark"), help="folder for operator.json and .png")


def _operator(args: argparse.Namespace) -> None:
    gpu = args.device.type == "cuda"
    args.shapes = tuple(shape for group in args.shapes for shape in GROUPS[group])
    args.threads = args.threads or ((None,) if gpu else thread_counts("1,all"))
    args.batches = args.batches or ((128,) if gpu else (2,))
    del args.verb, args.measure
    benchmark_operator(Settings(**vars(args)))


def add_data(verbs: Any) -> None:
    parser = verbs.add_parser("data", help="loading, against the model's own speed", allow_abbrev=False)
    parser.set_defaults(measure=_data)
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="a recipe or its name")
    add("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="as in training")
    add("--device", default="auto", help="of the model: auto, cpu, cuda or cuda:N")
    add("--workers", type=_counts, metavar="N,N", help="loader processes (default 0,1,2,4 … as many as cores)")
    add("--seconds", type=at_least(float, 0.1), default=5.0, help="per row (default 5)")
    add("--output", type=Path, default=Path("runs/benchmark"), help="folder for data.json and .png")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({at_least(int, 0)(part) for part in text.split(",")}))


def _data(args: argparse.Namespace) -> None:
    from .data import benchmark_data  # with timm and all tasks, which takes seconds

    benchmark_data(args)


def add_step(verbs: Any) -> None:
    parser = verbs.add_parser("step", help="training and evaluation of networks, compiled and not", allow_abbrev=False)
    parser.set_defaults(measure=_step)
    add = parser.add_argument
    pair = ("elsa_swin_tiny", "swin_tiny_patch4_window7_224")
    add("--models", type=_names, default=pair, metavar="A,B", help=f"timm's names (default {','.join(pair)})")
    add("--dtypes", type=subset(DTYPES), default=("fp32",), metavar="A,B", help="(default fp32)")
    add("--device", type=device, default=torch.device("cpu"), help="cpu (default), cuda or cuda:N")
    add("--threads", type=at_least(int, 1), default=1, help="of a CPU (default 1)")
    add("--batch", type=at_least(int, 1), help="images (default 4, on a GPU 128)")
    add("--size", type=at_least(int, 32), default=224, help="of the images in pixels (default 224)")
    add("--seconds", type=at_least(float, 0.0), default=5.0, help="per row, eager and compiled each (default 5)")
    add("--output", type=Path, default=Path("runs/benchmark"), help="folder for step.json")


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _step(args: argparse.Namespace) -> None:
    from .step import StepSettings, benchmark_step  # with timm, which takes seconds

    args.batch = args.batch or (128 if args.device.type == "cuda" else 4)
    del args.verb, args.measure
    benchmark_step(StepSettings(**vars(args)))


def add_model(verbs: Any) -> None:
    told = "whole networks beside their counterparts, in turns of one run"
    parser = verbs.add_parser("model", help=told, description=told, allow_abbrev=False)
    parser.set_defaults(measure=_model)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="a network of ours: elsa_swin_tiny; without elsa_ its baseline")
    _add_case(add, ("inference", "train"), batch="8, on a GPU 128")
    add("--settings", type=subset(SETTINGS), default=tuple(SETTINGS), metavar="A,B",
        help=f"of the counterpart: {', '.join(f'{name} ({told})' for name, told in SETTINGS.items())}")  # fmt: skip
    add("--size", type=image_size, default=(224, 224), metavar="N", help="N or HEIGHTxWIDTH (default 224)")
    add("--task", choices=("classifier", "backbone"), default="classifier", help="logits, or the maps of a detector")
    add("--output", type=Path, default=Path("runs/benchmark"), help="folder for model.json and .png")
    add("--markdown", type=Path, nargs="+", metavar="FILE", help="measure nothing: rows of a table from such JSON")


def _add_case(add: Any, passes: tuple[str, ...], batch: str) -> None:
    """What every measurement of whole networks takes."""
    add("--against", metavar="NAME", help="the counterpart: any network of timm's, or none (default: by a table)")
    _add_passes(add, passes)
    add("--mode", dest="modes", type=subset(("eager", "compiled", "frozen")), default=("eager",), metavar="A,B",
        help="eager (default), compiled by torch.compile, frozen (weights as constants; inference)")  # fmt: skip
    add("--batch", type=at_least(int, 1), help=f"images of each process (default {batch})")
    add("--device", type=device, default=torch.device("cpu"), help="cpu (default), cuda or cuda:N")
    add("--threads", type=counts(1), metavar="N,N", help="of a CPU (default 1)")
    add("--rounds", type=at_least(int, 1), default=11, help="turns of each contestant (default 11)")


def _add_passes(add: Any, passes: tuple[str, ...]) -> None:
    add("--passes", type=subset(("inference", "train")), default=passes, metavar="A,B",
        help=f"inference, train (the whole step; default {','.join(passes)})")  # fmt: skip
    add("--dtype", dest="dtypes", type=subset(("float32", "bfloat16")), default=("float32",), metavar="A,B",
        help="float32 (default), bfloat16 by autocast")  # fmt: skip


def add_parts(verbs: Any) -> None:
    told = "the share of each part of a network's blocks"
    parser = verbs.add_parser("parts", help=told, description=told, allow_abbrev=False)
    parser.set_defaults(measure=_parts)
    add = parser.add_argument
    add("name", metavar="NAME", help="a network of ours: elsa_swin_tiny; without elsa_ its baseline")
    _add_passes(add, ("inference", "train"))
    add("--batch", type=at_least(int, 1), help="images (default 8, on a GPU 128)")
    add("--size", type=image_size, default=(224, 224), metavar="N", help="N or HEIGHTxWIDTH (default 224)")
    add("--device", type=device, default=torch.device("cpu"), help="cpu (default), cuda or cuda:N")
    add("--threads", type=at_least(int, 1), help="of a CPU (default 1)")
    add("--rounds", type=at_least(int, 1), default=9, help="calls (default 9)")
    add("--output", type=Path, default=Path("runs/benchmark"), help="folder for parts.json and .png")


def _parts(args: argparse.Namespace) -> None:
    from .parts import PartsSettings, benchmark_parts  # with timm, which takes seconds

    settings = _case(args, 8)
    settings["threads"] = settings["threads"][0] if isinstance(settings["threads"], tuple) else settings["threads"]
    benchmark_parts(PartsSettings(**settings))


def add_scaling(verbs: Any) -> None:
    told = "a network and its counterpart over the size of images, the batch, threads and processes"
    parser = verbs.add_parser("scaling", help=told, description=told, allow_abbrev=False)
    parser.set_defaults(measure=_scaling)
    add = parser.add_argument
    add("name", metavar="NAME", help="a network of ours: elsa_swin_tiny; without elsa_ its baseline")
    add("--against", metavar="NAME", help="the counterpart: any network of timm's, or none (default: by a table)")
    add("--passes", type=subset(("inference", "train")), default=("inference",), metavar="A,B",
        help="inference (default), train: the whole step")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="float32 (default), bfloat16 by autocast")
    add("--sizes", type=counts(32), default=(224, 448, 672, 896, 1120), metavar="N,N",
        help="sides of single images (default 224,448,672,896,1120)")  # fmt: skip
    add("--batches", type=counts(1), default=(1, 2, 4, 8, 16, 32), metavar="N,N",
        help="at the first size (default 1,2,4,8,16,32)")  # fmt: skip
    add("--batch", type=at_least(int, 1), help="of threads and processes, each (default 8, on a GPU 128)")
    add("--device", type=device, default=torch.device("cpu"), help="cpu (default), cuda or cuda:N")
    add("--threads", type=counts(1), metavar="N,N", help="of a CPU (default 1,2, or as many as there are cores)")
    add("--processes", type=counts(1), metavar="N,N",
        help="that compute at once, one thread each; in training they exchange gradients (default 1,2)")  # fmt: skip
    add("--rounds", type=at_least(int, 1), default=5, help="turns of each contestant (default 5)")
    add("--output", type=Path, default=Path("runs/benchmark"), help="folder for scaling.json and .png")


def _scaling(args: argparse.Namespace) -> None:
    from .machine import cores
    from .scaling import ScalingSettings, benchmark_scaling  # with timm, which takes seconds

    gpu = args.device.type == "cuda"
    some = () if gpu else tuple(count for count in (1, 2) if count <= len(cores()))
    args.threads, args.processes = args.threads or some, args.processes or some
    args.batch = args.batch or (128 if gpu else 8)
    del args.verb, args.measure
    benchmark_scaling(ScalingSettings(**vars(args)))


def _case(args: argparse.Namespace, cpu_batch: int) -> dict[str, Any]:
    gpu = args.device.type == "cuda"
    args.threads = args.threads or ((0,) if gpu else (1,))
    args.batch = args.batch or (128 if gpu else cpu_batch)
    del args.verb, args.measure
    return vars(args)


def _model(args: argparse.Namespace) -> None:
    from .whole import WholeSettings, benchmark_model  # with timm, which takes seconds
    from .whole_report import print_markdown

    if args.markdown:
        print_markdown(args.markdown)
        return
    del args.markdown
    args.names = tuple(args.names)
    benchmark_model(WholeSettings(**_case(args, 8)))
