"""The command ``elsa VERB …``: the same code as ``python tools/VERB.py …``.

Several processes: torchrun --nproc_per_node=N -m elsa.tools VERB …
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from elsa.tools.tasks.doctor.machine import require_extra


def main() -> None:
    """Tells the version or the verbs, or runs the verb that the command line names."""
    asked = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if asked == "--version":
        print(f"elsa {importlib.import_module('elsa.core').__version__}")
    elif asked in ("-h", "--help"):
        print("usage: elsa VERB …; elsa VERB --help tells of each\n")
        print("\n".join(f"  {name:<18} {text}" for name, text in verbs().items()))
        print("\nRecipes are files, or names of shipped ones: elsa train elsa_swin_tiny --output DIR")
    elif asked == "doctor":  # runs where what the others need is broken
        sys.argv[:2] = ["elsa doctor"]
        importlib.import_module("elsa.tools.doctor").main()
    else:
        require_extra("train", asked)  # a plain installation has the models alone
        from elsa.tools.tasks.outcome import run  # imports timm, which takes seconds

        run(dispatch)


def verbs() -> dict[str, str]:
    """{verb: what it does, in a line}, from the files of this folder."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    texts = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}
    return {name: text.partition("\n")[0] for name, text in texts.items()}


def dispatch() -> None:
    """Runs the verb that ``sys.argv[1]`` names, - for _ allowed, with the arguments that follow.

    Raises:
        ConfigError: no such verb; the message has the nearest one, or all.
    """
    from elsa.core import ConfigError, did_you_mean

    asked, known = sys.argv[1], verbs()
    if (verb := asked.replace("-", "_")) not in known:
        hint = did_you_mean(asked, [*known, "--help", "--version"]) or f"; there are {', '.join(known)}"
        raise ConfigError(f"{asked!r} is no verb of elsa{hint}")
    sys.argv[:2] = [f"elsa {verb}"]  # what argparse calls the program
    importlib.import_module(f"elsa.tools.{verb}").main()


if __name__ == "__main__":
    main()
