#!/usr/bin/env python
"""Predict for images of one's own: python tools/predict.py [CONFIG] CHECKPOINT IMAGE|FOLDER … --output DIR.

Classes with their confidence; for a recipe of detection, boxes and masks drawn and in COCO's format; for one of
segmentation, label maps.
"""

from __future__ import annotations

from pathlib import Path

from elsa.core import check_writable, setup_logging
from elsa.engine import distributed
from elsa.tools.tasks.command import parse, parser, require_one_process
from elsa.tools.tasks.outcome import run


def main() -> None:
    arguments = parser(__doc__, checkpoint=True)
    arguments.add_argument("images", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    arguments.add_argument("--output", type=Path, default=Path("runs/predict"), metavar="DIR")
    task, recipe, args = parse("predict", arguments)
    check_writable(args.output)
    with distributed(args.device) as runtime:
        setup_logging(runtime.rank)
        require_one_process("predict", runtime)
        task.predict(recipe, args, runtime)


if __name__ == "__main__":
    run(main)
