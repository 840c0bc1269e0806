#!/usr/bin/env python
"""Export a trained classifier for other runtimes: python tools/export.py [CONFIG] CHECKPOINT --output FILE.

FILE.onnx is for ONNX runtimes; FILE.pt2 a program of torch.export, or with --format aoti a library that is compiled
for this machine; FILE.safetensors the weights. Beside it FILE.json tells how images are prepared, and the classes.
"""

from __future__ import annotations

from pathlib import Path

from elsa.core import setup_logging
from elsa.engine import distributed
from elsa.tools.tasks.command import parse, parser, require_one_process
from elsa.tools.tasks.exporting import FORMATS, export_classifier
from elsa.tools.tasks.outcome import run


def main() -> None:
    arguments = parser(__doc__, checkpoint=True)
    arguments.add_argument("--output", type=Path, metavar="FILE", required=True)
    arguments.add_argument("--format", choices=FORMATS, help="default: what FILE's ending says")
    arguments.add_argument("--overwrite", action="store_true", help="replace FILE and FILE.json")
    _, recipe, args = parse("export", arguments, only="classification")
    with distributed("cpu") as runtime:
        setup_logging(runtime.rank)
        require_one_process("export", runtime)
        export_classifier(recipe, args)


if __name__ == "__main__":
    run(main)
