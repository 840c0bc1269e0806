#!/usr/bin/env python
"""Kills runs of the three tasks at random moments, over and over, and compares how they end: to the last bit.

python tests/soak.py --kills 100: half an hour of two cores; the same seed kills at the same places, as far as clocks
allow. It is tests/tools/test_soak.py, which the test suite runs with a few kills.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all tasks together (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of when and what is killed (default 0)")
    args = parser.parse_args()
    if args.kills < 1:
        parser.error(f"--kills must be at least 1, got {args.kills}")
    test = Path(__file__).parent / "tools" / "test_soak.py"
    return pytest.main([str(test), "-s", "-p", "no:xdist", f"--kills={args.kills}", f"--soak-seed={args.seed}"])


if __name__ == "__main__":
    sys.exit(main())
