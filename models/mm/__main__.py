"""mmdet's and mmseg's own scripts: ``python -m elsa.models.mm mmdet test CONFIG CHECKPOINT``.

By their names, wherever the packages lie; importing this package gives mmcv its operators before.
"""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
from pathlib import Path

from elsa.core import did_you_mean

PROJECTS = ("mmdet", "mmseg")


def scripts(project: str) -> dict[str, Path]:
    """The scripts that come with an installed project: {"train": …/train.py, "analysis_tools/get_flops": …}."""
    spec = importlib.util.find_spec(project)
    folders = [Path(place) / ".mim" / "tools" for place in (spec and spec.submodule_search_locations) or ()]
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path for folder in folders for path in folder.rglob("*.py")
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m elsa.models.mm", description=__doc__)
    parser.add_argument("project", choices=PROJECTS)
    parser.add_argument("script", help="train, test, analysis_tools/get_flops …: a file of the project's tools/")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script takes")
    asked = parser.parse_args()
    known = scripts(asked.project)
    if asked.script not in known:
        there = did_you_mean(asked.script, known) or f"; there is {', '.join(sorted(known)) or 'none installed'}"
        parser.error(f"{asked.script!r} is no script of {asked.project}{there}")
    path = str(known[asked.script])
    sys.argv = [path, *asked.arguments]
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main()
