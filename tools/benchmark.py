#!/usr/bin/env python
"""Measures the operator (op), loading (data CONFIG), or steps of whole networks (step): python tools/benchmark.py op

All contestants of a row run in turns within one loop, and the shortest of many repetitions counts, so that other load
on the machine disturbs them alike; only the ratios within one run are to be relied on. Beside the operator are timed:
the published formula (unfold), PyTorch's depthwise K×K convolution (the static counterpart, in its better memory
format), 2-D neighbourhood attention by flex_attention, and as measures of the machine a matrix product and a copy; on a
GPU with --device cuda. Of data: each stage of an image's way, the loader at several numbers of processes, timm's own on
the same files, and the model's step, for the number of loader processes that it needs. Of steps: training and
evaluation, compiled by torch.compile and not.
"""

from __future__ import annotations

import argparse

from elsa.tools.tasks import benchmark as task
from elsa.tools.tasks.outcome import run


def main() -> None:
    parser = task.OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=task.OneLineParser)
    for add in task.VERBS:
        add(verbs)
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    run(main)
