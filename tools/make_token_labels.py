#!/usr/bin/env python
"""Write the token labels of a training split: for every image a map of a classifier's best classes and their scores.

One process: python tools/make_token_labels.py CONFIG CHECKPOINT --output DIR. Several, on one machine or more with a
shared disk: torchrun --nproc_per_node=N tools/make_token_labels.py …; or start it again and again with --shard I/N.
CONFIG and CHECKPOINT are those of the classifier, any timm or ELSA model. What is there already is kept.
"""

from __future__ import annotations

from pathlib import Path

from elsa.core import ConfigError, check_writable, setup_logging
from elsa.engine import distributed
from elsa.tools.tasks.command import parse, parser
from elsa.tools.tasks.outcome import run
from elsa.tools.tasks.token_labels import make_labels


def main() -> None:
    arguments = parser(__doc__, checkpoint=True)
    arguments.add_argument("--output", type=Path, metavar="DIR", help="folder for the label maps, TOKENS.LABELS")
    arguments.add_argument("--grid", type=int, default=18, metavar="N", help="cells per side (default 18)")
    arguments.add_argument("--top", type=int, default=5, metavar="K", help="classes per cell (default 5)")
    arguments.add_argument(
        "--shard", default="1/1", metavar="I/N", help="the I-th of N parts, for jobs without torchrun"
    )
    _, recipe, args = parse("make_token_labels", arguments, only="classification")
    if args.output is None:
        raise ConfigError("--output DIR is needed: where the label maps go")
    for name, value in (("--grid", args.grid), ("--top", args.top)):
        if not 1 <= value <= 1024:
            raise ConfigError(f"{name} must be between 1 and 1024, got {value}")
    check_writable(args.output)
    with distributed(args.device) as runtime:
        setup_logging(runtime.rank)
        make_labels(recipe, args, runtime)


if __name__ == "__main__":
    run(main)
