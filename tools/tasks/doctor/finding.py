"""What a check found, and how it is told to people and to machines."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

OK, NOTE, PROBLEM = "ok", "note", "problem"
NARROWEST = 40  # columns for what was found


@dataclass(frozen=True)
class Finding:
    """
    Attributes:
        subject: what was looked at, in a word or two.
        level: "ok"; "note", worth knowing; "problem", with which there is no training.
        text: what was found.
        cure: the command that mends it; empty where nothing is wrong.
    """

    subject: str
    level: str
    text: str
    cure: str = ""


class Case:
    """What the doctor is asked about: this machine, or this machine for a recipe.

    Args:
        config: a file, or the name of a shipped recipe. overrides: of ``--set``.
    """

    def __init__(self, config: str | None = None, overrides: tuple[str, ...] = ()) -> None:
        self.config, self.overrides = config, tuple(overrides)

    @cached_property
    def _read(self) -> tuple[Any, BaseException | None]:
        try:
            from elsa.tools.tasks.command import find_recipe, read

            return read(find_recipe(Path(self.config or "")), list(self.overrides)), None
        except Exception as error:  # whatever is broken on the way to it
            return None, error

    def recipe(self) -> tuple[Any, Any]:
        """The task and the recipe.

        Raises:
            Exception: whatever keeps them from being read.
        """
        found, error = self._read
        if error is not None:
            raise error
        return found

    @property
    def task(self) -> str:
        """Its name, as far as the recipe's file tells; empty without a recipe."""
        if self.config is None:
            return ""
        if self._read[0] is not None:
            return self._read[0][0].name
        configs = Path(__file__).resolve().parents[3] / "configs"
        dense = [path.stem for kind in ("detection", "segmentation") for path in (configs / kind).glob("*.py")]
        return "detection" if self.config.endswith(".py") or self.config in dense else "classification"


def has_problem(findings: list[Finding]) -> bool:
    return any(finding.level == PROBLEM for finding in findings)


def as_json(findings: list[Finding]) -> str:
    return json.dumps({"ok": not has_problem(findings), "findings": [asdict(found) for found in findings]}, indent=2)


def told(findings: list[Finding], width: int | None = None) -> list[str]:
    """Lines: level, subject and text in columns, below them the cure as it is typed, at last a summary."""
    subjects = max((len(found.subject) for found in findings), default=0)
    before = len(PROBLEM) + subjects + 4
    room = max((width or shutil.get_terminal_size((120, 24)).columns) - before, NARROWEST)
    lines = []
    for found in findings:
        text = textwrap.wrap(found.text, room, break_on_hyphens=False, break_long_words=False) or [""]
        lines.append(f"{found.level:<{len(PROBLEM)}}  {found.subject:<{subjects}}  {text[0]}")
        lines += [" " * before + line for line in text[1:]]
        lines += [" " * before + f"→ {found.cure}"] if found.cure else []
    return [*lines, "", _summary(findings)]


def _summary(findings: list[Finding]) -> str:
    counts = {level: sum(found.level == level for found in findings) for level in (PROBLEM, NOTE)}
    said = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    return " and ".join(said) if said else "all is well"
