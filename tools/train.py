#!/usr/bin/env python
"""Train the model of a recipe: a classifier, a detector or a segmentor.

One process: python tools/train.py CONFIG --output DIR. Several: torchrun --nproc_per_node=N tools/train.py CONFIG …
"""

from __future__ import annotations

from pathlib import Path

from elsa.core import ConfigError, setup_logging
from elsa.engine import distributed
from elsa.engine.profile import DEFAULT
from elsa.tools.tasks.command import parse, parser
from elsa.tools.tasks.outcome import run


def main() -> None:
    arguments = parser(__doc__, checkpoint=False)
    arguments.add_argument("--output", type=Path, metavar="DIR", help="the run's folder")
    arguments.add_argument(
        "--resume", metavar="auto|PATH", help="auto: continue from DIR/last.pt where there is one; or from a checkpoint"
    )
    arguments.add_argument("--overwrite", action="store_true", help="replace the run that DIR holds")
    arguments.add_argument(
        "--profile", metavar="FIRST:LAST[:all]", nargs="?", const=DEFAULT,
        help=f"profile these steps of this launch (default {DEFAULT}), in DIR/profile; all: in every process",
    )  # fmt: skip
    task, recipe, args = parse("train", arguments)
    if args.output is None:
        raise ConfigError("--output DIR is needed: where checkpoints and logs go")
    if args.resume == "auto" and args.overwrite:
        raise ConfigError("--resume auto continues the run that DIR holds, --overwrite replaces it: choose one")
    with distributed(args.device, recipe.minutes) as runtime:
        setup_logging(runtime.rank)
        task.train(recipe, args, runtime)


if __name__ == "__main__":
    run(main)
