#!/usr/bin/env python
"""What is wrong here, and the command that mends it: python tools/doctor.py [CONFIG] [--json]

Looks at Python, torch, GPUs, the compiled operators, apex, the packages for detection and segmentation, disk and shared
memory, and with CONFIG at its data and how fast they are read. Ends with exit code 1 where something prevents training.
"""

from __future__ import annotations

import io
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

try:
    from elsa.tools.tasks.doctor.examine import Case, examine
    from elsa.tools.tasks.doctor.finding import as_json, has_problem, told
except ImportError as error:
    sys.exit(f"problem  elsa cannot be imported ({error})\n         → bash scripts/setup.sh")


def main() -> None:
    arguments = ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter)
    arguments.add_argument("config", nargs="?", metavar="CONFIG", help="a file, or the name of a shipped recipe")
    arguments.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    arguments.add_argument("--json", action="store_true", help="print JSON")
    args = arguments.parse_args()
    if args.overrides and args.config is None:
        arguments.error("--set needs CONFIG")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the arrow
    findings = examine(Case(args.config, tuple(args.overrides)))
    print(as_json(findings) if args.json else "\n".join(told(findings)))
    sys.exit(1 if has_problem(findings) else 0)


if __name__ == "__main__":
    main()
