#!/usr/bin/env python
"""Export a trained network for other runtimes: python tools/export.py [CONFIG] CHECKPOINT --output FILE.

FILE.onnx is for ONNX runtimes; FILE.pt2 a program of torch.export, or with --format aoti a library that is compiled
for this machine; FILE.safetensors the weights. Beside it FILE.json tells how images are prepared, the classes, and what
was measured. --format hub --output DIR writes a folder for a model hub. Of a detector graphs hold backbone and neck.
"""

from __future__ import annotations

from pathlib import Path

from elsa.core import setup_logging
from elsa.engine import distributed
from elsa.tools.tasks.command import parse, parser, require_one_process
from elsa.tools.tasks.exporting.options import add_options
from elsa.tools.tasks.outcome import run


def main() -> None:
    arguments = parser(__doc__, checkpoint=True)
    arguments.add_argument("--output", type=Path, metavar="FILE|DIR", required=True)
    add_options(arguments)
    task, recipe, args = parse("export", arguments)
    with distributed("cpu") as runtime:
        setup_logging(runtime.rank)
        require_one_process("export", runtime)
        task.export(recipe, args, runtime)


if __name__ == "__main__":
    run(main)
