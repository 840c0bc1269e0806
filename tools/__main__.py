"""The command ``elsa VERB …``: the same code as ``python tools/VERB.py …``."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from elsa.core import ConfigError, __version__, did_you_mean


def verbs() -> dict[str, str]:
    """{verb: what it does, in a line}, from the files of this folder."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = text.splitlines()[0] if text else ""
    return found


def main() -> None:
    from elsa.tools.tasks.command import run

    run(dispatch)


def dispatch() -> None:
    """Runs the verb that the command line names."""
    verb, known = (sys.argv[1] if len(sys.argv) > 1 else "--help").replace("-", "_"), verbs()
    if verb == "__version":
        print(f"elsa {__version__}")
    elif verb in ("__help", "_h"):
        print("usage: elsa VERB …; elsa VERB --help tells of each\n")
        print("\n".join(f"  {name:<18} {text}" for name, text in known.items()))
        print("\nRecipes are files, or names of shipped ones: elsa train elsa_swin_tiny --output DIR")
    elif verb not in known:
        hint = did_you_mean(verb, known) or f"; there are {', '.join(known)}"
        raise ConfigError(f"{sys.argv[1]!r} is no verb of elsa{hint}")
    else:
        sys.argv[:2] = [f"elsa {verb}"]
        importlib.import_module(f"elsa.tools.{verb}").main()


if __name__ == "__main__":
    main()
