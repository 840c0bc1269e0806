"""From a network to a file with a name: written beside, read again, compared, measured."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from elsa.core import ConfigError, UserError, logger, make_folder, write_json, write_then_rename

from .formats import WRITERS
from .measuring import compare, latencies, machine, table, tolerance
from .options import GRAPHS
from .subject import Call, Subject, first_line, why_one_size


def export_network(subject: Subject, args: argparse.Namespace, form: str) -> None:
    """Writes the file, and beside it ``FILE.json``: what it is, and what was measured of it.

    Raises:
        ConfigError: this network cannot be written in this format.
        TrainingError: what was written computes something else than PyTorch; nothing is left.
    """
    make_folder(args.output.parent)
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".", suffix=".tmp") as folder:
        made = Path(folder) / f"network{args.output.suffix}"
        began = time.perf_counter()
        logger.info("%s: %s", args.output, "exporting takes up to some minutes" if form in GRAPHS else "writing")
        call, any_size = _written(subject, made, args, form)
        measured = _measured(subject, call, args, form, any_size)
        write_then_rename(args.output, lambda beside: shutil.copyfile(made, beside))
    write_json(args.output.with_name(args.output.name + ".json"), {**subject.about, "measured": measured})
    size, seconds = args.output.stat().st_size / 1e6, time.perf_counter() - began
    logger.info("%s: %.1f MB of %s, written in %.0f s", args.output, size, subject.name, seconds)
    for line in table(measured):
        logger.info("%s", line)


def _written(subject: Subject, path: Path, args: argparse.Namespace, form: str) -> tuple[Call, bool]:
    """How the file computes that is written, and whether it takes images of any size.

    Raises:
        ConfigError: this network cannot be written in this format.
    """
    any_size = form in GRAPHS and args.size != "fixed"
    if form == "aoti" and args.size == "auto":
        logger.info("images of %d×%d alone; libraries for any size take long and are slow; --size any makes one",
                    *subject.size)  # fmt: skip
        any_size = False
    if any_size and (reason := why_one_size(subject)):
        if args.size == "any":
            raise ConfigError(f"--size any: {subject.name} takes images of one size: {reason}")
        logger.info("images of %d×%d alone: %s takes no others: %s", *subject.size, subject.name, reason)
        any_size = False
    while True:
        describe_size(subject, any_size)
        try:
            return WRITERS[form](subject, path, any_size, args.dtype, args.quantize), any_size
        except (OSError, UserError):
            raise
        except Exception as error:  # exporters raise whatever a network makes them stumble over
            if any_size and args.size == "auto":
                logger.info("images of %d×%d alone, as a graph for any size failed: %s",
                            *subject.size, first_line(error))  # fmt: skip
                any_size = False
                continue
            raise ConfigError(f"{subject.name} cannot be exported as {form}: {first_line(error)}") from error


def describe_size(subject: Subject, any_size: bool) -> None:
    """Notes which images the graph takes."""
    sides = ("height", "width") if any_size else subject.size
    subject.about["input"]["shape"] = ["batch", subject.channels, *sides]
    subject.about["input"]["trained_with"] = list(subject.size)


def _measured(subject: Subject, call: Call, args: argparse.Namespace, form: str, any_size: bool) -> dict[str, Any]:
    """What FILE.json has of it, and the log."""
    shapes = [*subject.shapes, *(subject.others if any_size else ())]
    found: dict[str, Any] = {"difference": compare(call, subject, shapes, tolerance(args))}
    found["shapes"] = [list(shape) for shape in shapes]
    if subject.top1 is not None:
        found["top1"] = {"PyTorch": subject.top1(subject.call), form: subject.top1(call)}
    if form in GRAPHS:
        found["milliseconds"] = latencies({"PyTorch": subject.call, form: call}, subject)
        found["machine"] = machine()
    return found
