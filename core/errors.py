"""The errors that are told in one line, and the hint at the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 1200  # characters of a message


class UserError(ValueError):
    """A user's mistake: the message names the value, what is allowed, and the near miss. Tools exit with code 2.

    It is one line whatever it quotes: line breaks and what else cannot be printed stand there as escapes.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(UserError):
    """A mistake in a configuration or on the command line."""


class DataError(UserError):
    """The data is not what the configuration says; the message names the place."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or whose tensors do not fit the model."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stood and what can be used. Tools exit with code 1."""


class ProcessLost(TrainingError):
    """Another process that this one needs, of its peers or of those that load data, has ended or does not answer."""


class UnreadableData(DataError):
    """More images that cannot be read than are allowed."""


def one_line(text: str) -> str:
    """A text with escapes for what cannot be printed, without the middle of what nobody would read to its end; of what
    torch tells of a loader process, the error alone."""
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 2 // 3]} … {text[-LONGEST // 3 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(name: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """ "; did you mean NEAREST?", or nothing where no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), 1, cutoff)
    return f"; did you mean {near[0]}?" if near else ""
