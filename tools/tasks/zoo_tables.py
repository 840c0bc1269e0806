"""Tables of the shipped recipes: for a terminal, and for documents, where they stand between markers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elsa.core import DataError

Rows = Mapping[str, Mapping[str, Any]]

# Task → what its accuracy is called, on what it was published, and the keys of its numbers.
ACCURACY = {
    "classification": ("top-1", "ImageNet-1K alone", ("top1",)),
    "detection": ("box / mask AP", "COCO val2017", ("box_ap", "mask_ap")),
    "segmentation": ("mIoU", "ADE20K, multi-scale + flip", ("miou",)),
}
NONE = "–"

# The README's tables: the recipes of each line under one label.
BRIEF: dict[str, dict[str, list[str]]] = {
    "classification": {
        **{f"ELSA-Swin-{size[0].upper()}": [f"elsa_swin_{size}"] for size in ("tiny", "small", "base")},
        "Swin-T, -S, -B under the same recipe (the paper's comparison)": ["swin_tiny", "swin_small", "swin_base"],
    },
    "volo": {
        "D1, D1 at 384 px": ["elsa_volo_d1", "elsa_volo_d1_384"],
        "D2, D2 at 384 px": ["elsa_volo_d2", "elsa_volo_d2_384"],
        "D3, D3 at 448 px": ["elsa_volo_d3", "elsa_volo_d3_448"],
        "D4, D4 at 448 px": ["elsa_volo_d4", "elsa_volo_d4_448"],
        "D5, D5 at 448, 512 px": ["elsa_volo_d5", "elsa_volo_d5_448", "elsa_volo_d5_512"],
    },
    "detection": {
        f"{title} {schedule}, ELSA-Swin-T, -S": [f"{name}_elsa_swin_{size}_{schedule}" for size in ("tiny", "small")]
        for name, title in (("mask_rcnn", "Mask R-CNN"), ("cascade_mask_rcnn", "Cascade"))
        for schedule in ("1x", "3x")
    },
    "segmentation": {"UPerNet, ELSA-Swin-T, -S": ["upernet_elsa_swin_tiny", "upernet_elsa_swin_small"]},
}
DOCUMENTS = {"README.md": tuple(BRIEF), "docs/zoo.md": ("all",)}
OPENING, CLOSING = "<!-- elsa zoo: {} -->", "<!-- end of it -->"


def accuracy(row: Mapping[str, Any], kind: str) -> str:
    """The published or measured accuracy of a row, in words; a dash where there is none."""
    figures = row.get(kind) or {}
    numbers = [f"{figures[key]:.1f}" for key in ACCURACY[row["task"]][2] if key in figures]
    note = f" ({figures['note']})" if "note" in figures else ""
    return " / ".join(numbers) + note if numbers else NONE


def million(row: Mapping[str, Any]) -> str:
    return f"{row['parameters'] / 1e6:.1f}"


def billion(row: Mapping[str, Any]) -> str:
    number = row["multiply_adds"] / 1e9
    return f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def pixels(row: Mapping[str, Any]) -> str:
    return "×".join(map(str, row["input"]))


def listed(rows: Rows) -> Iterable[str]:
    """Lines for a terminal."""
    widest = max(map(len, rows))
    yield f"{'recipe':<{widest}}  {'input':>9}  {'params (M)':>10}  {'GMACs':>7}  {'published':>14}  measured here"
    for name, row in rows.items():
        own = row["measured"].get("model")
        yield (
            f"{name:<{widest}}  {pixels(row):>9}  {million(row):>10}  {billion(row):>7}  "
            f"{accuracy(row, 'published'):>14}  {accuracy(row, 'measured')}{f' ({own})' if own else ''}"
        )


def whole_tables(rows: Rows) -> str:
    """A table of each task, with a line for each recipe, in Markdown."""
    parts = []
    for task, (name, where, _) in ACCURACY.items():
        of_task = {recipe: row for recipe, row in rows.items() if row["task"] == task}
        if not of_task:
            continue
        counted = "GMACs" if task == "classification" else "GMACs of the backbone"
        lines = [
            [f"`{recipe}`", pixels(row), million(row), billion(row), accuracy(row, "published"), _measured(row)]
            for recipe, row in of_task.items()
        ]
        heads = [task, "input", "M params", counted, f"published {name} ({where})", f"{name} measured here"]
        parts.append(markdown(heads, lines))
    return "\n\n".join(parts)


def _measured(row: Mapping[str, Any]) -> str:
    own = row["measured"].get("model")
    return accuracy(row, "measured") + (f" ([`{own}`](../configs/weights/{own}.md))" if own else "")


def brief_table(kind: str, rows: Rows) -> str:
    """A table of the README, in Markdown."""
    task = "classification" if kind == "volo" else kind
    name, where, _ = ACCURACY[task]
    lines = []
    for label, recipes in BRIEF[kind].items():
        group = [rows[recipe] for recipe in recipes]
        published = [_together(accuracy(row, "published") for row in group)]
        if kind == "volo":
            plain = [rows[recipe.removeprefix("elsa_")] for recipe in recipes]
            published.insert(0, _together(accuracy(row, "published") for row in plain))
        measured = _together(accuracy(row, "measured") for row in group)
        sizes = [_together(map(million, group)), _together(map(billion, group))]
        ending = "yaml" if task == "classification" else "py"
        lines.append([label, *published, *sizes, "not run" if measured == NONE else measured,
                      f"`configs/{task}/{braced(recipes)}.{ending}`"])  # fmt: skip
    of = ["published top-1: VOLO", "ELSA-VOLO"] if kind == "volo" else [f"published {name} ({where})"]
    counted = "GMACs" if task == "classification" else "backbone's GMACs"
    recipe = "recipe (and `volo_…`, the baseline)" if kind == "volo" else "recipe"
    return markdown(["", *of, "M params", counted, "here", recipe], lines)


def _together(values: Iterable[str]) -> str:
    """Values of a group: one where they are the same."""
    given = list(values)
    return given[0] if len(set(given)) == 1 else ", ".join(given)


def braced(names: Sequence[str]) -> str:
    """Names in the shell's short form: swin_tiny, swin_base → swin_{tiny,base}; volo, volo_384 → volo{,_384}."""
    words = [name.split("_") for name in names]
    head = _shared(words)
    ends = [parts[head:] for parts in words]
    tail = _shared([parts[::-1] for parts in ends])
    varying = ["".join(f"_{part}" for part in parts[: len(parts) - tail]) for parts in ends]
    start, close = "_".join(words[0][:head]), "".join(f"_{part}" for part in ends[0][len(ends[0]) - tail :])
    if all(varying):
        start, varying = f"{start}_", [part[1:] for part in varying]
    return f"{start}{{{','.join(varying)}}}{close}" if len(names) > 1 else names[0]


def _shared(words: Sequence[Sequence[str]]) -> int:
    """How many of the first words are the same in all."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False)))


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    written = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (heads, *lines)]
    return "\n".join([written[0], f"|{'---|' * len(heads)}", *written[1:]])


def replace_tables(text: str, document: str, rows: Rows) -> str:
    """A document with its tables as the rows are.

    Raises:
        DataError: the markers of a table are not there once each.
    """
    for kind in DOCUMENTS[document]:
        opening = OPENING.format(kind)
        between = re.compile(f"(?<={re.escape(opening)}\n).*?(?={re.escape(CLOSING)})", re.DOTALL)
        if text.count(opening) != 1 or not between.search(text):
            raise DataError(f"{document} must have {opening} once, and {CLOSING} after it")
        table = whole_tables(rows) if kind == "all" else brief_table(kind, rows)
        text = between.sub(lambda _, table=table: f"{table}\n", text)
    return text
