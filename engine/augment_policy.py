"""The grammar of timm's augmentation policies (``AUG.AUTO_AUGMENT``): timm passes over parts that it does not know."""

from __future__ import annotations

import re

from elsa.core import did_you_mean

_WHOLE, _FROM_1, _NUMBER = r"\d+", r"[1-9]\d*", r"\d+(?:\.\d+)?"
_SHARE = r"(?:0\.\d*[1-9]\d*|1(?:\.0*)?)"  # above 0, at most 1
# Policy → the sections that may follow it, joined by dashes.
POLICIES: dict[str, dict[str, str]] = {
    "rand": {"m": _WHOLE, "n": _FROM_1, "p": _SHARE, "mstd": _NUMBER, "mmax": _FROM_1, "inc": "[01]",
             "t": "(?:weights|3aw?)"},
    "augmix": {"m": _WHOLE, "w": _FROM_1, "d": _FROM_1, "a": rf"(?!0+(?:\.0+)?$){_NUMBER}", "b": "[01]",
               "mstd": _NUMBER},
    **{name: {"mstd": _NUMBER} for name in ("original", "originalr", "v0", "v0r", "3a")},
}  # fmt: skip


def fault(policy: str) -> str | None:
    """What is wrong with a policy string, reading on after its value; None where timm takes all of it."""
    if not policy:
        return None
    name, *sections = policy.split("-")
    if name not in POLICIES:
        near = did_you_mean(name, POLICIES) or f"; there are {', '.join(POLICIES)}"
        return f"begins with {name!r}, no policy of timm{near}"
    known, given = POLICIES[name], set()
    for section in sections:
        key = next((key for key, value in known.items() if re.fullmatch(key + value, section)), None)
        if key is None:
            word = re.sub(r"[\d.].*", "", section)
            near = "" if word in known else did_you_mean(word, known, 0.7)
            return f"has {section!r}; {name} takes {', '.join(known)}, each with its value (m9, mstd0.5){near}"
        if key in given:
            return f"gives {key} twice"
        given.add(key)
    return None
