#!/usr/bin/env python
"""Measures the ELSA operator: python tools/benchmark.py op, on a GPU with --device cuda.

All contestants of a row run in turns within one loop, and the shortest of many repetitions counts, so that other load
on the machine disturbs them alike; only the ratios within one run are to be relied on. Beside the operator are timed:
the published formula (unfold), PyTorch's depthwise K×K convolution (the static counterpart, in its better memory
format), 2-D neighbourhood attention by flex_attention, and as measures of the machine a matrix product and a copy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from elsa.tools.tasks import benchmark as task
from elsa.tools.tasks.outcome import run


def main() -> None:
    args = parse()
    gpu = args.device.type == "cuda"
    args.shapes = tuple(shape for group in args.shapes for shape in task.GROUPS[group])
    args.threads = args.threads or ((None,) if gpu else task.thread_counts("1,all"))
    args.batch = args.batch or (128 if gpu else 2)
    del args.verb
    task.benchmark_operator(task.Settings(**vars(args)))


def parse() -> argparse.Namespace:
    parser = task.OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=task.OneLineParser)
    add = verbs.add_parser("op", help="the operator", allow_abbrev=False).add_argument
    groups = f"groups of shapes, or all: {', '.join(task.GROUPS)} (default {','.join(task.DEFAULT_GROUPS)})"
    add("--shapes", type=task.subset(task.GROUPS, True), default=task.DEFAULT_GROUPS, metavar="A,B", help=groups)
    beside = f"of {', '.join(task.CONTESTANTS)}; flex compiles for each shape (default unfold,depthwise)"
    names = task.subset((*task.CONTESTANTS, "none"))
    add("--contestants", type=names, default=("unfold", "depthwise"), metavar="A,B", help=beside)
    both, passes = ("forward", "backward"), "forward, backward (= forward and backward together), or both (default)"
    add("--passes", type=task.subset(both), default=both, metavar="A,B", help=passes)
    add(
        "--dtypes", type=task.subset(task.DTYPES), default=tuple(task.DTYPES), metavar="A,B", help="(default fp32,bf16)"
    )
    add("--device", type=task.device, default=torch.device("cpu"), help="cpu (default), cuda or cuda:N")
    add("--threads", type=task.thread_counts, metavar="N,all", help="of a CPU (default 1,all)")
    add("--batch", type=task.at_least(int, 1), help="(default 2, on a GPU 128)")
    add("--seconds", type=task.at_least(float, 0.0), default=0.3, help="per contestant and row (default 0.3)")
    add("--memory", type=task.at_least(int, 0), default=4, help="GiB that the unfold formula may take (default 4)")
    add("--backend", choices=("auto", "cpu", "cuda", "reference"), default="auto")
    add("--output", type=Path, default=Path("runs/benchmark"), help="folder for operator.json and .png")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
