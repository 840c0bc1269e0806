#!/usr/bin/env python
"""Make one file of a checkpoint: its weights (.safetensors), or all that a training goes on from (.pt).

python tools/convert.py RUN --output weights.safetensors: RUN is the folder of a run, of a sharded checkpoint in it
(RUN/shards/step-…), or a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from elsa.core import setup_logging
from elsa.tools.tasks.conversion import WEIGHTS, convert
from elsa.tools.tasks.outcome import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's folder, or a checkpoint")
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help=".safetensors, or .pt")
    parser.add_argument("--weights", choices=WEIGHTS, default="auto", help="auto: the EMA where there is one")
    parser.add_argument("--half", action="store_true", help="weights as float16, of half the size")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    args = parser.parse_args()
    setup_logging()
    convert(args.checkpoint, args.output, args.weights, args.overwrite, args.half)


if __name__ == "__main__":
    run(main)
