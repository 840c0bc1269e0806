#!/usr/bin/env python
"""Evaluate a checkpoint over the validation split: accuracy and loss, of a detector AP, of a segmentor mIoU.

One process: python tools/evaluate.py [CONFIG] CHECKPOINT. Several: torchrun --nproc_per_node=N tools/evaluate.py …
"""

from __future__ import annotations

from pathlib import Path

from elsa.core import ConfigError, check_writable, setup_logging
from elsa.engine import distributed
from elsa.tools.tasks.command import parse, parser
from elsa.tools.tasks.outcome import run


def main() -> None:
    arguments = parser(__doc__, checkpoint=True)
    arguments.add_argument("--output", type=Path, metavar="DIR", help="default: runs/evaluate/NAME of CONFIG or run")
    arguments.add_argument(
        "--pictures",
        type=int,
        default=0,
        metavar="N",
        help="draw N images with their predictions; of classification, mistakes first",
    )
    task, recipe, args = parse("evaluate", arguments)
    args.output = args.output or Path("runs/evaluate") / args.name
    if args.pictures < 0:
        raise ConfigError(f"--pictures must be at least 0, got {args.pictures}")
    check_writable(args.output)
    with distributed(args.device) as runtime:
        setup_logging(runtime.rank)
        task.evaluate(recipe, args, runtime)


if __name__ == "__main__":
    run(main)
