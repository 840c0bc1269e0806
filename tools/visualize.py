#!/usr/bin/env python
"""See what a network does with images: python tools/visualize.py [CONFIG] CHECKPOINT IMAGE|FOLDER … --output DIR.

Of ELSA networks the Hadamard attention of every stage, block, head and position, as a page in which a click chooses the
position (attention.html) and as attention.png, and the ghost head's filters (ghost_head.png); of every network the
effective receptive fields of its stages (receptive_field.png) and Grad-CAM (gradcam.png).

python tools/visualize.py data CONFIG --output FILE.png draws training samples, augmented, with their targets, as the
model will see them. (A recipe that is named "data" is written ./data.)
"""

from __future__ import annotations

import sys

from elsa.core import setup_logging
from elsa.engine import distributed
from elsa.tools.tasks.command import parse, parser, require_one_process
from elsa.tools.tasks.outcome import run
from elsa.tools.tasks.visualize import look, sheet


def main() -> None:
    if sys.argv[1:2] == ["data"]:
        sys.argv[:2] = [f"{sys.argv[0]} data"]
        arguments = parser(__doc__, checkpoint=False)
        sheet.add_options(arguments)
        task, recipe, args = parse("visualize data", arguments)
        sheet.check(args)
        work = task.show_data
    else:
        arguments = parser(__doc__, checkpoint=True)
        look.add_options(arguments)
        task, recipe, args = parse("visualize", arguments)
        look.check(args)
        work = task.visualize
    with distributed(args.device) as runtime:
        setup_logging(runtime.rank)
        require_one_process("visualize", runtime)
        work(recipe, args, runtime)


if __name__ == "__main__":
    run(main)
