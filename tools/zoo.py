#!/usr/bin/env python
"""Tell the shipped recipes' accuracy, published and measured, and size: python tools/zoo.py [--task TASK].

Nothing is computed; python tools/zoo.py --update computes what is stored, for one who adds or changes a recipe.
"""

from __future__ import annotations

import argparse
import json

from elsa.core import ConfigError, did_you_mean, setup_logging
from elsa.tools.tasks.command import TASKS
from elsa.tools.tasks.outcome import run
from elsa.tools.tasks.zoo import read_zoo, update
from elsa.tools.tasks.zoo_tables import listed, whole_tables


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--task", metavar="|".join(TASKS), help="default: all three")
    kinds = arguments.add_mutually_exclusive_group()
    kinds.add_argument("--json", action="store_true", help="print JSON: {recipe: figures}")
    kinds.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    kinds.add_argument("--update", action="store_true", help="compute parameters and multiply-adds, write the tables")
    args = arguments.parse_args()
    if args.task not in (None, *TASKS):
        hint = did_you_mean(args.task, TASKS) or f"; there are {', '.join(TASKS)}"
        raise ConfigError(f"--task {args.task} is no task{hint}")
    setup_logging()
    if args.update:
        if args.task:
            raise ConfigError("--update computes all tasks: leave out --task")
        update()
        return
    rows = read_zoo(args.task)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(whole_tables(rows) if args.markdown else "\n".join(listed(rows)))


if __name__ == "__main__":
    run(main)
