#!/usr/bin/env python
"""Write a recipe for data of one's own: python tools/new.py TASK --data DIR --output FILE.

Looks at the data, chooses model, image size, batch, learning rate and length for them and for this machine, says what
it chose and why, and builds all of it once, as a training would, before the recipe is written.
"""

from __future__ import annotations

from elsa.core import setup_logging
from elsa.tools.tasks.new.command import parse, propose, write
from elsa.tools.tasks.outcome import run


def main() -> None:
    args = parse(__doc__)
    setup_logging(0)
    write(propose(args), args)


if __name__ == "__main__":
    run(main)
