#!/usr/bin/env python
"""Write emoji as images for classification: python tools/make_emoji.py PACKAGE… --output datasets/emoji.

Get the packages with: npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
They hold drawings under Apache-2.0 and CC-BY 4.0; classes are subgroups of Unicode, 64×64 pixels, 2,196 pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from elsa.core import ConfigError, check_writable, logger, setup_logging
from elsa.data import image_files, write_emoji
from elsa.tools.tasks.outcome import run


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE", help="a .tgz of npm pack, or a folder")
    arguments.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = arguments.parse_args()
    check_writable(args.output)
    setup_logging(0)
    try:
        root = write_emoji(args.packages, args.output)
    except FileExistsError as error:
        raise ConfigError(f"--output {args.output} holds something else; choose another folder") from error
    counts = {split: len(image_files(root / split)) for split in ("train", "val")}
    classes = sum(1 for _ in (root / "train").iterdir())
    logger.info("%s: %d classes, %d images for training, %d for validation", root, classes, *counts.values())


if __name__ == "__main__":
    run(main)
