"""What the doctor's tests share."""

from __future__ import annotations

from types import SimpleNamespace

from elsa.tools.tasks.doctor.finding import Finding

NO_TASK = SimpleNamespace(config=None, task="")


def only(check, case=NO_TASK) -> Finding:
    """The one finding of a check."""
    (found,) = check(case)
    return found
