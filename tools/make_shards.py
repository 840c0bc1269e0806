#!/usr/bin/env python
"""Write images for classification as WebDataset shards: python tools/make_shards.py SOURCE --output DIR.

SOURCE is a recipe, whose DATA says where the images are; a folder with train and val, class folders or tar files; or a
list of files, "PATH LABEL" or "PATH<tab>CLASS" a line, with --val LIST for the validation images. Files go into the
shards byte for byte, in a random order. Train from them with --set DATA.DATASET=wds/NAME DATA.ROOT=DIR. Started again
after an interruption it writes what is missing.
"""

from __future__ import annotations

from elsa.core import check_writable, setup_logging
from elsa.tools.tasks.outcome import run
from elsa.tools.tasks.shards import make_shards, parse


def main() -> None:
    args = parse(__doc__)
    check_writable(args.output)
    setup_logging(0)
    make_shards(args)


if __name__ == "__main__":
    run(main)
