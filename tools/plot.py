#!/usr/bin/env python
"""Compare runs of any task in one picture and a table.

python tools/plot.py runs/one runs/two --output compared.png, or a folder that holds runs. Loss is smoothed, the best
of the metric has a star; each task has panels of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from elsa.core import setup_logging
from elsa.tools.tasks.outcome import run
from elsa.tools.tasks.plots import AXES, compare


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, or folders of such")
    arguments.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    arguments.add_argument("--metric", metavar="NAME", help="e.g. top5 or mAP_50; default: that of the best checkpoint")
    arguments.add_argument("--x", choices=sorted(AXES), default="epoch", help="default epoch")
    arguments.add_argument("--table", type=Path, metavar="FILE", help="write the table too, as .csv or .json")
    args = arguments.parse_args()
    setup_logging(0)
    compare(args.runs, args.output, args.metric, args.x, args.table)


if __name__ == "__main__":
    run(main)
