"""The grammar of timm's augmentation policies (``AUG.AUTO_AUGMENT``): timm passes over parts that it does not know."""

from __future__ import annotations

import re

from elsa.core import did_you_mean

_WHOLE, _NUMBER = r"\d+", r"\d+(?:\.\d+)?"
# Policy → the sections that may follow it, joined by dashes.
POLICIES: dict[str, dict[str, str]] = {
    "rand": {"m": _WHOLE, "n": r"[1-9]\d*", "p": _NUMBER, "mstd": _NUMBER, "mmax": _WHOLE, "inc": "[01]",
             "t": r"[a-z]\w*"},
    "augmix": {"m": _WHOLE, "w": _WHOLE, "d": r"-?\d+", "a": _NUMBER, "b": "[01]", "mstd": _NUMBER},
    **{name: {"mstd": _NUMBER} for name in ("original", "originalr", "v0", "v0r", "3a")},
}  # fmt: skip


def fault(policy: str) -> str | None:
    """What is wrong with a policy string, reading on after its value; None where timm takes all of it."""
    if not policy:
        return None
    name, *sections = policy.split("-")
    if name not in POLICIES:
        return f"begins with no policy of timm{did_you_mean(name, POLICIES) or '; there are ' + ', '.join(POLICIES)}"
    known = POLICIES[name]
    for section in sections:
        if not any(re.fullmatch(key + value, section) for key, value in known.items()):
            return f"has {section!r}; after {name} there may be {', '.join(known)}, each with its value (m9, mstd0.5)"
    return None
