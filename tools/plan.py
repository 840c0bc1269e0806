#!/usr/bin/env python
"""The plan of a recipe on GPUs that need not be here: batch, learning rates, steps, and memory of each GPU.

python tools/plan.py CONFIG [--nodes N] [--gpus N] [--memory GIB]. Nothing is computed but shapes, and no data is read.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from elsa.core import setup_logging
from elsa.tools.tasks.command import find_recipe, read
from elsa.tools.tasks.outcome import run
from elsa.tools.tasks.outlook import PRECISIONS, check_machine, foresee, told


def main() -> None:
    arguments = ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter)
    arguments.add_argument("config", type=Path, metavar="CONFIG", help="a file, or the name of a shipped recipe")
    arguments.add_argument("--nodes", default="1", metavar="N", help="machines; default 1")
    arguments.add_argument("--gpus", default="8", metavar="N", help="GPUs of each, a process for each; default 8")
    arguments.add_argument("--memory", default="80", metavar="GIB", help="of each GPU, in GiB; default 80")
    arguments.add_argument("--precision", metavar="|".join(PRECISIONS), help="default: the recipe's, auto as bf16")
    arguments.add_argument("--parallel", metavar="ddp|fsdp", help="default: the recipe's")
    arguments.add_argument("--images", metavar="N", help="training images, where the recipe's data are not well known")
    arguments.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    arguments.add_argument("--json", action="store_true", help="print JSON")
    args = check_machine(arguments)
    setup_logging(0)
    task, recipe = read(find_recipe(args.config), args.overrides)
    plan = foresee(task.outlook(recipe, args), args)
    print(json.dumps(plan, indent=2) if args.json else "\n".join(told(plan)))


if __name__ == "__main__":
    run(main)
