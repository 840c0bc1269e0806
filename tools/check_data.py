#!/usr/bin/env python
"""Check a data set before training: python tools/check_data.py {coco,imagenet,ade20k} ROOT, or CONFIG.

Reads every file and changes none. Ends with OK (exit code 0) or with what is wrong (exit code 1).
"""

from __future__ import annotations

import sys

from elsa.core import ConfigError, DataError, check_writable, make_folder, write_json
from elsa.tools.tasks.data_check import check, parse, tell
from elsa.tools.tasks.outcome import run


def main() -> None:
    args = parse(__doc__)
    if args.json:
        if args.json.is_dir():
            raise ConfigError(f"--json {args.json} is a folder")
        check_writable(args.json.parent, "--json")
    try:
        report = check(args)
    except OSError as error:
        place = error.filename or args.root or args.dataset
        raise DataError(f"{place} cannot be read: {error.strerror or error}") from error
    if args.json:
        make_folder(args.json.parent, "--json")
        write_json(args.json, report.as_dict())
    tell(report, args.show)
    sys.exit(0 if report.ok else 1)


if __name__ == "__main__":
    run(main)
