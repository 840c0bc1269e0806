#!/usr/bin/env python
"""Check a data set before training: python tools/check_data.py {coco,imagenet,ade20k} ROOT.

Reads every file and changes none. Ends with OK (exit code 0) or with what is wrong (exit code 1).
"""

from __future__ import annotations

import sys

from elsa.core import ConfigError, DataError, check_writable, make_folder, write_json
from elsa.tools.tasks.data_check import CHECKS, of_maps, parse, show_progress, tell
from elsa.tools.tasks.outcome import run


def main() -> None:
    args = parse(__doc__)
    if args.json:
        if args.json.is_dir():
            raise ConfigError(f"--json {args.json} is a folder")
        check_writable(args.json.parent, "--json")
    options = dict(classes=args.classes, splits=tuple(dict.fromkeys(args.splits)), fast=args.fast, **of_maps(args))
    try:
        report = CHECKS[args.dataset](args.root, workers=args.workers, progress=show_progress, **options)
    except OSError as error:
        raise DataError(f"{error.filename or args.root} cannot be read: {error.strerror or error}") from error
    if args.json:
        make_folder(args.json.parent, "--json")
        write_json(args.json, report.as_dict())
    tell(report, args.show)
    sys.exit(0 if report.ok else 1)


if __name__ == "__main__":
    run(main)
