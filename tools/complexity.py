#!/usr/bin/env python
"""Parameters and multiply-adds of the models of configurations, beside the published ones.

python tools/complexity.py [CONFIG …], without CONFIG all ImageNet recipes. Nothing is computed but shapes. Counted are
convolutions, matrix products, attention and the ELSA operator; multiply-adds are half the floating-point operations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from elsa.core import make_folder, write_json
from elsa.tools.tasks.command import CONFIGS, find_recipe
from elsa.tools.tasks.complexity import count, line
from elsa.tools.tasks.outcome import run


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("configs", type=Path, nargs="*", metavar="CONFIG", help="default: all ImageNet recipes")
    arguments.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    arguments.add_argument("--output", type=Path, metavar="FILE", help="write the table as JSON, too")
    args = arguments.parse_args()
    recipes = sorted(path for path in (CONFIGS / "classification").glob("*.yaml") if not path.name.startswith("digits"))
    rows = []
    print(f"{'configuration':<22} {'size':>4} {'params (M)':>10} {'published':>9} {'GMACs':>8} {'published':>9}")
    for path in [find_recipe(path) for path in args.configs] or recipes:
        rows.append(count(path, args.overrides))
        print(line(rows[-1]), flush=True)
    if args.output:
        make_folder(args.output.parent)
        write_json(args.output, rows)


if __name__ == "__main__":
    run(main)
