#!/usr/bin/env python
"""Measures the operator (op), whole networks beside their counterparts (model), the parts of their blocks (parts),
how they scale (scaling), loading (data CONFIG), or compiled networks (step): python tools/benchmark.py op

All contestants of a row run in turns within one run, so that other load on the machine disturbs them alike; only the
ratios within one run are to be relied on. Of the operators the shortest of many repetitions counts, with one thread of
processor time. Beside the aggregation are timed: the published formula (unfold), PyTorch's depthwise K×K convolution
(the static counterpart, in its better memory format), 2-D neighbourhood attention by flex_attention; beside the
Hadamard convolution PyTorch's product, grouped convolution and GELU; as measures of the machine a matrix product and a
copy; on a GPU with --device cuda. Whole networks are processes of their own, which take turns: ours, and the
counterpart as it comes, at its best settings, and with our linear layers. Of data: each stage of an image's way, the
loader at several numbers of processes, timm's own on the same files, and the model's step, for the number of loader
processes that it needs. Of steps: training and evaluation, compiled by torch.compile and not.
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
