#!/usr/bin/env python
"""Run and compare variants of a recipe over seeds: python tools/study.py STUDY --output DIR [--jobs N].

STUDY is a file, or the name of a shipped study: digits_operators. DIR gets results.json, table.md, table.csv and
study.png, and the runs themselves; started again, finished runs stay and the rest goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from elsa.core import ConfigError, TrainingError, check_writable, make_folder, setup_logging, write_text
from elsa.tools.tasks.launching import count
from elsa.tools.tasks.outcome import run
from elsa.tools.tasks.study.plan import find_study, read_study
from elsa.tools.tasks.study.report import report
from elsa.tools.tasks.study.runs import plan_runs, run_all, shell_lines


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("study", type=Path, metavar="STUDY", help="a file, or the name of a shipped study")
    add("--output", type=Path, required=True, metavar="DIR")
    add("--jobs", type=count, default=1, metavar="N", help="runs at a time, on each device (default 1)")
    add("--device", nargs="+", default=["auto"], metavar="D", help="several, cuda:0 cuda:1 …: each has runs of its own")
    add("--processes", type=count, default=1, metavar="N", help="of each run, by torchrun (default 1)")
    kinds = arguments.add_mutually_exclusive_group()
    kinds.add_argument("--commands", action="store_true", help="print what is left to run, for another launcher")
    kinds.add_argument("--report", action="store_true", help="run nothing: compare what is there")
    args = arguments.parse_args()
    if args.processes > 1 and len(args.device) > 1:
        raise ConfigError("--processes shares all devices: it goes with one --device, auto, cpu or cuda")
    setup_logging(0)
    study = read_study(find_study(args.study))
    check_writable(args.output)
    runs = plan_runs(study, args.output)
    if args.commands:
        print("\n".join(shell_lines(study, runs)))
        return
    if not args.report:
        make_folder(args.output)
        write_text(args.output / "study.yaml", study.text)
    failed = [] if args.report else run_all(study, runs, args.device, args.jobs, args.processes)
    report(study, runs, args.output)
    if failed:
        raise TrainingError(f"{len(failed)} of {len(runs)} runs failed; the first is {failed[0]}")


if __name__ == "__main__":
    run(main)
