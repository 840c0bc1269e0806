"""The verb: what it is asked for, and how a recipe is tried and written."""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

from elsa.core import ConfigError, check_writable, did_you_mean, logger, make_folder, write_text
from elsa.core.archive import checkpoint_file
from elsa.engine import distributed

from .. import command
from .proposal import Proposal

ENDINGS = {"classification": (".yaml", ".yml"), "detection": (".py",), "segmentation": (".py",)}


def parse(description: str | None) -> argparse.Namespace:
    """
    Raises:
        ConfigError: an unknown task or option, or an output that cannot be.
    """
    arguments = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("task", metavar="TASK", help="classification, detection or segmentation")
    add(
        "--data", type=Path, required=True, metavar="DIR", help="the data, see docs/your-data.md; or a list, or a .json"
    )
    add("--output", type=Path, required=True, metavar="FILE", help="the recipe: .yaml for classification, else .py")
    add("--model", metavar="NAME", help="elsa_swin_tiny (of detection and segmentation the backbone), or a timm model")
    add("--weights", type=Path, metavar="FILE", help="weights to start from")
    add("--image-key", default="", metavar="COLUMN", help="of a table: the column with the images")
    add("--label-key", default="", metavar="COLUMN", help="of a table: the column with the classes")
    add("--trust-checkpoint", action="store_true", help="allow --weights to run pickled code")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps: what the recipe is made for")
    add("--overwrite", action="store_true", help="replace FILE")
    args, rest = arguments.parse_known_args()
    if rest:
        known = [flag for flag in arguments._option_string_actions if flag.startswith("--")]
        raise ConfigError(f"unknown argument {rest[0]!r}{did_you_mean(rest[0], known)}")
    if args.task not in ENDINGS:
        near = did_you_mean(args.task, ENDINGS) or f"; there are {', '.join(ENDINGS)}"
        raise ConfigError(f"{args.task!r} is no task{near}")
    if args.output.suffix not in (endings := ENDINGS[args.task]):
        raise ConfigError(f"--output {args.output}: a recipe of {args.task} ends in {endings[0]}")
    for name in ("image_key", "label_key"):
        if getattr(args, name) and args.task != "classification":
            raise ConfigError(f"--{name.replace('_', '-')} is of tables; {args.task} has none")
    check_writable(args.output.parent)
    if args.weights:
        args.weights = checkpoint_file(args.weights).resolve()
    args.data, args.output = args.data.resolve(), args.output.resolve()
    return args


def propose(args: argparse.Namespace) -> Proposal:
    """
    Raises:
        ConfigError: what is there already, or a model that cannot be.
        DataError: data that cannot be trained on.
    """
    _check_free([args.output], args.overwrite)
    if args.task != "classification":
        command.require_dense_packages()
    proposal = importlib.import_module(f"elsa.tools.tasks.new.{args.task}").propose(args)
    _check_free(proposal.files, args.overwrite)
    return proposal


def _check_free(paths: Iterable[Path], overwrite: bool) -> None:
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"--output {path} is a folder")
        if path.exists() and not overwrite:
            raise ConfigError(f"--output {path} exists: --overwrite replaces it")


def write(proposal: Proposal, args: argparse.Namespace) -> None:
    """Builds all that a training of the recipe would, then writes it, with what it names."""
    lines = _tried(proposal, args)
    make_folder(args.output.parent)
    for path, text in (*proposal.files.items(), (args.output, proposal.text)):
        write_text(path, text)
    for line in (*proposal.told, *lines):
        logger.info("%s", line)
    logger.info("%s: look at it, then elsa check_data %s, and elsa train %s --output DIR", *(args.output,) * 3)


def _tried(proposal: Proposal, args: argparse.Namespace) -> list[str]:
    """The plan of a training here, of the recipe in a folder for a while."""
    with tempfile.TemporaryDirectory() as folder:
        text = proposal.text
        for path, content in proposal.files.items():
            beside = Path(folder, path.name)
            beside.write_text(content, encoding="utf-8")
            text = text.replace(str(path), str(beside))
        (recipe_file := Path(folder, args.output.name)).write_text(text, encoding="utf-8")
        task, recipe = command.read(recipe_file, [])
        with distributed(args.device) as runtime:
            plan = task.build(recipe, runtime, None, args.trust_checkpoint).plan
            return list(plan.lines())
