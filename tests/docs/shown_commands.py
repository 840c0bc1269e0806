"""The commands that the documentation shows: which there are, and what each says of itself."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import elsa.tools
from elsa.engine.schema import SCHEMA
from elsa.tools.tasks.command import CONFIGS, shipped_recipes

VERBS = Path(elsa.tools.__file__).parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|((?:^ {4}[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "", None)  # the languages of blocks that are read
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
OPERATORS = ("&&", "||", ";", "|", ">", ">>", "<")
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_]*$|…|[\[\]|{}*$]")


@dataclass(frozen=True)
class Command:
    """``elsa VERB words…`` of a page, in whatever words it is written there: ``python tools/VERB.py`` and the like.

    Attributes:
        not_run: why no test runs it, as a comment ``<!-- not run: … -->`` in the last line before its block says.
    """

    page: str
    line: int
    verb: str
    words: tuple[str, ...]
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.verb} {' '.join(self.words)}"


def commands(page: Path) -> Iterator[Command]:
    """Those of a page's blocks, with lines that end in a backslash joined."""
    text = page.read_text()
    for block in BLOCK.finditer(text):
        if block[1] not in SHELL:
            continue
        first = text[: block.start()].count("\n") + 1 + bool(block[2])
        before = text[: block.start()].rstrip().rpartition("\n")[2]
        reason = NOT_RUN.search(before)
        lines = (block[2] or block[3]).splitlines()
        while lines:
            number, line = first, lines.pop(0).strip()
            first += 1
            while line.endswith("\\") and lines:
                line, first = line[:-1] + lines.pop(0).strip(), first + 1
            for words in _simple(line):
                if called := _verb(words):
                    yield Command(page.name, number, called[0], tuple(called[1]), reason[1] if reason else "")


def _simple(line: str) -> Iterator[list[str]]:
    """The simple commands of a line; none where it is no shell's."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    try:
        for word in lexer:
            if word in OPERATORS:
                yield words
                words = []
            else:
                words.append(word)
    except ValueError:
        return
    yield words


def _verb(words: list[str]) -> tuple[str, list[str]] | None:
    """(verb, arguments) of the words of a command that is one of ours."""
    for at, word in enumerate(words):
        if found := re.fullmatch(r"(?:.*/)?tools/(\w+)\.py", word):
            return found[1], words[at + 1 :]
        if found := re.fullmatch(r"(?:\./)?scripts/train_\w+\.sh", word):
            return "train", words[at + 1 :]
        if word == "elsa" and len(words) > at + 1 and words[at + 1].isidentifier():
            return words[at + 1], words[at + 2 :]
    return None


@functools.cache
def flags(verb: str, subcommand: str = "") -> frozenset[str]:
    """All options that a verb tells of, of every task."""
    told = io.StringIO()
    argv = [verb, *([subcommand] if subcommand else []), "--help"]
    with mock.patch("sys.argv", argv), contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        importlib.import_module(f"elsa.tools.{verb}").main()
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][\w-]*", told.getvalue()))


def mistakes(command: Command) -> list[str]:
    """What a command names that is not there: its verb, a recipe, an option, a key."""
    if not (VERBS / f"{command.verb}.py").is_file():
        return [f"no verb {command.verb}"]
    words = list(command.words)
    first = next((word for word in words if not word.startswith("-")), "")
    known = flags(command.verb)
    if command.verb == "benchmark" or (command.verb, first) == ("visualize", "data"):
        known = flags(command.verb, first) | known
    if command.verb == "launch":  # what it does not know itself it hands on
        known |= flags("train")
    found = [f"no option {word}" for word in words if _flag(word) and word.split("=")[0] not in known]
    found += [f"no recipe {word}" for word in words if word.startswith("configs/") and not _there(word)]
    if re.fullmatch(r"(elsa_)?(swin|volo)_\w+", first) and command.verb not in ("benchmark", "new"):
        found += [f"no recipe {first}"] * (first not in shipped_recipes())
    keys = re.findall(r"(?<![\w.])([A-Z]+\.[A-Z_]+)=", " ".join(words))
    return found + [f"no key {key}" for key in keys if key not in SCHEMA]


def _flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def _there(word: str) -> bool:
    return bool(PLACEHOLDER.search(word)) or (CONFIGS.parent / word).exists()
