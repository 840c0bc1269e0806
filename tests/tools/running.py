"""Running a tool as a user does, in this process."""

from __future__ import annotations

import contextlib
import io
import runpy
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def run_tool(root: Path, verb: str, *arguments: object) -> Outcome:
    """``tools/VERB.py ARGUMENTS``: exit code and what it printed."""
    out, err, code, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads()
    argv = mock.patch("sys.argv", [f"tools/{verb}.py", *map(str, arguments)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(str(root / "tools" / f"{verb}.py"), run_name="__main__")
        except SystemExit as leaving:
            code = leaving.code or 0
    torch.set_num_threads(threads)  # a benchmark's choice is not that of the runs after it
    return Outcome(code, out.getvalue(), err.getvalue())
