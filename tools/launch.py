#!/usr/bin/env python
"""Submit the training of a recipe to a cluster: one task a GPU, which requeues itself at the time limit and goes on.

python tools/launch.py CONFIG --output DIR --nodes 2 --gpus 8 --partition NAME [train's options]; needs submitit.
All arguments that are not named here are train's; they and the recipe are checked before anything is submitted.
"""

from __future__ import annotations

import argparse

from elsa.tools.tasks import launching
from elsa.tools.tasks.outcome import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    launching.add_options(parser)
    launching.submit(*launching.parse(parser))


if __name__ == "__main__":
    run(main)
