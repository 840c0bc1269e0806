"""Runs the checks one after the other in another process, which may come to any end: a crash is that check's finding.

The other process prints its findings as lines of JSON. Where it ends early, the check that it was at is named and the
next process goes on behind it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from . import compute, dense, machine, recipe
from .finding import PROBLEM, Case, Finding

Check = Callable[[Case], Iterator[Finding]]
CHECKS: dict[str, Check] = {
    "Python": machine.python,
    "packages": machine.packages,
    "torch": compute.torch,
    "GPU": compute.gpus,
    "operators": compute.operators,
    "apex": compute.apex,
    "detection and segmentation": dense.stack,
    "disk": machine.disk,
    "/dev/shm": machine.shared_memory,
    "recipe": recipe.data,
    "images": recipe.reading,
}
FOLLOW = ("GPU", "operators", "apex", "recipe", "images")  # say nothing of their own where torch is broken
LIMIT = 300.0  # seconds for all checks together, after which the one under way counts as hanging
# Python finds what an installed command finds, and not what lies in the current folder.
CHILD = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from elsa.tools.tasks.doctor.examine import child; child(*sys.argv[1:])"
)


def examine(case: Case, names: Sequence[str] = tuple(CHECKS), limit: float = LIMIT) -> list[Finding]:
    """What the checks find, in their order."""
    findings: list[Finding] = []
    left = list(names)
    while left:
        done, found, reason = _run(case, left, limit)
        findings += found
        left = left[len(done) :]
        if reason:  # of the check after the last one that came to its end
            findings.append(Finding(left[0], PROBLEM, f"this check could not be ended: {reason}", _again(left[0])))
            left = [name for name in left[1:] if left[0] != "torch" or name not in FOLLOW]
    return findings


def _run(case: Case, names: list[str], limit: float) -> tuple[list[str], list[Finding], str]:
    """The checks that one process came to the end of, all that it found, and why it ended early."""
    asked = json.dumps({"config": case.config, "overrides": case.overrides, "names": names})
    command = [sys.executable, "-c", CHILD, asked]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
        output, reason = ended.stdout, _epitaph(ended.returncode, ended.stderr.decode(errors="replace"))
    except subprocess.TimeoutExpired as error:
        output, reason = error.stdout or b"", f"no end after {limit:.0f} s"
    lines = [json.loads(line) for line in output.decode().splitlines() if line.endswith("}")]
    done = [line["done"] for line in lines if "done" in line]
    found = [Finding(**line) for line in lines if "done" not in line]
    return done, found, "" if len(done) == len(names) else reason  # how Python ends afterwards is of no interest


def _epitaph(code: int, errors: str) -> str:
    said = [line.strip() for line in errors.splitlines() if line.strip()]
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}{f', {said[-1]}' if said else ''}"


def _again(name: str) -> str:
    module = {"torch": "torch", "operators": "elsa.kernels", "apex": "apex", "GPU": "torch"}.get(name)
    module = module or ("mmseg, mmdet" if name == "detection and segmentation" else "elsa.tools.tasks.command")
    return f"{sys.executable} -X faulthandler -c 'import {module}'"


def child(asked: str) -> None:
    """Runs the checks that are asked for, in the process of its own; each finding is told at once. What packages print
    goes to stderr."""
    given = json.loads(asked)
    case, broken = Case(given["config"], tuple(given["overrides"])), False
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as told:
        os.dup2(2, 1)
        for name in given["names"]:
            for found in () if broken and name in FOLLOW else run_check(name, case):
                told.write(json.dumps(asdict(found)) + "\n")
                broken |= name == "torch" and found.level == PROBLEM
            told.write(json.dumps({"done": name}) + "\n")


def run_check(name: str, case: Case) -> Iterator[Finding]:
    """What one check finds; an error of its own is a finding too."""
    try:
        yield from CHECKS[name](case)
    except Exception as error:
        yield Finding(name, PROBLEM, f"this check failed: {type(error).__name__}: {error}", _again(name))
