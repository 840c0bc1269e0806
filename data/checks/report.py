"""What all checks share: findings, and the look at one image."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ..decode import Header, UnreadableImage, read_header, verify
from ..survey import Progress, survey

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        kind: the same words for all of its kind.
        place: a file, an annotation, a class.
        detail: what is there, and what is expected.
    """

    kind: str
    place: str
    detail: str = ""


@dataclass
class Report:
    """The outcome of a check.

    Attributes:
        counts: what the data set holds.
        notes: what was taken for granted, and what was not looked at.
    """

    dataset: str
    root: str
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings

    def add(self, kind: str, place: object, detail: str = "") -> None:
        self.findings.append(Finding(kind, str(place), detail))

    def expect(self, kind: str, place: object, found: int, expected: int, hint: str = "") -> None:
        """A finding where a number is not the expected one."""
        if found != expected:
            self.add(kind, place, f"{found} instead of {expected}{hint}")

    def by_kind(self) -> dict[str, list[Finding]]:
        kinds: dict[str, list[Finding]] = {}
        for finding in self.findings:
            kinds.setdefault(finding.kind, []).append(finding)
        return kinds

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True)
class Look:
    """What an image file is; ``error`` where it cannot be read."""

    header: Header | None = None
    error: str = ""

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) as people see it."""
        return self.header and self.header.size

    @property
    def mode(self) -> str:
        return self.header.mode if self.header else ""


def look_at(file: str | io.BytesIO, decode: bool = True) -> Look:
    """Size and mode of an image; with ``decode`` all of its data is read."""
    try:
        return Look(verify(file) if decode else read_header(file))
    except UnreadableImage as error:
        return Look(error=error.reason)


class Oddities:
    """Counts images that are shown otherwise than their files hold them, as ``data/decode.py`` does it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def see(self, look: Look) -> None:
        if (header := look.header) is None:
            return
        said = {
            "turned, as the camera notes (EXIF)": header.orientation > 1,
            "transparent in part, shown on white": header.transparent,
            "of 16 bits, scaled to 8": header.mode.startswith("I"),
            "CMYK, converted to RGB": header.mode == "CMYK",
        }
        self.counts.update(what for what, is_so in said.items() if is_so)

    def notes(self, split: str) -> list[str]:
        return [f"{split}: {count} images are {what}" for what, count in sorted(self.counts.items())]


def look_at_images(
    report: Report, split: str, paths: Sequence[str], decode: bool, workers: int, progress: Progress
) -> Iterator[tuple[str, Look]]:
    """(path, look) of each image that can be read; the others are findings, and what is odd is noted."""
    oddities = Oddities()
    for path, look in survey(partial(look_at, decode=decode), paths, workers, progress, f"{split} images"):
        if look.error:
            report.add("image unreadable", path, look.error)
        else:
            oddities.see(look)
            yield path, look
    report.notes += oddities.notes(split)
