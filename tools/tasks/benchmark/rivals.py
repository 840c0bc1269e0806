"""Which networks meet: one of ours, and its counterpart, as it comes, at its best, and with our linear layers."""

from __future__ import annotations

import os
from dataclasses import dataclass

import timm

from elsa.core import ConfigError, did_you_mean
from elsa.models import VARIANTS

from .settings import FUSED_ATTENTION, HUGE_PAGES, LINEAR, SETTINGS

# The network that each of ours is compared with. Those without "elsa_" are ours, too: the same trunk with the attention
# of Swin or VOLO.
COUNTERPARTS = {
    "elsa_swin_nano": "swin_nano",
    "elsa_swin_tiny": "swin_tiny_patch4_window7_224",
    "elsa_swin_small": "swin_small_patch4_window7_224",
    "elsa_swin_base": "swin_base_patch4_window7_224",
    "elsa_volo_nano": "volo_nano",
    **{f"elsa_volo_d{size}": f"volo_d{size}_224" for size in range(1, 6)},
}
BASELINES = {name.removeprefix("elsa_"): name for name in VARIANTS}


@dataclass(frozen=True)
class Rival:
    """A contestant: a network and how it is run.

    Attributes:
        label: its name in tables. model: a name of ours or of timm's. ours: whether it is what the others are
            compared with.
        environment: what is set for its process; None takes a variable away.
        our_linear: whether its linear layers are replaced by ours.
        processes: that compute at once, each a whole batch; in training they exchange gradients.
    """

    label: str
    model: str
    ours: bool
    environment: dict[str, str | None]
    our_linear: bool = False
    processes: int = 1


def is_ours(name: str) -> bool:
    return name in VARIANTS or name in BASELINES


def check_name(name: str, option: str) -> None:
    """Raises ConfigError, with the nearest name, for what is no model."""
    if not is_ours(name) and not timm.is_model(name):
        near = did_you_mean(name, [*VARIANTS, *BASELINES, *timm.list_models()])
        raise ConfigError(f"{option} {name!r} is no model{near or '; timm.list_models() has all names'}")


def counterpart(name: str) -> str:
    """The network that one of ours is compared with, of a baseline of ours timm's.

    Raises:
        ConfigError: it has none by itself.
    """
    found = COUNTERPARTS.get(name) or COUNTERPARTS.get(BASELINES.get(name, ""))
    if found is None or found == name:
        raise ConfigError(f"{name} has no counterpart of its own: name one with --against, or --against none")
    return found


def contestants(name: str, against: str | None, settings: tuple[str, ...]) -> list[Rival]:
    """One of ours, as scripts/ run it, and its counterpart in each of the ``settings``.

    Args:
        against: the counterpart; None takes the one of the table, "none" leaves it out.
    """
    # Ours says ELSA_LINEAR as the caller's environment does.
    found = [Rival(name, name, True, {HUGE_PAGES: "1", FUSED_ATTENTION: None})]
    if against == "none":
        return found
    other = against or counterpart(name)
    environments: dict[str, dict[str, str | None]] = {
        "plain": {HUGE_PAGES: None, FUSED_ATTENTION: None, LINEAR: "torch"},
        "best": {HUGE_PAGES: "1", FUSED_ATTENTION: "2", LINEAR: "torch"},
        "linear": {HUGE_PAGES: "1", FUSED_ATTENTION: "2"},
    }
    for which in settings:
        label = f"{other}, {SETTINGS[which]}"
        found.append(Rival(label, other, False, environments[which], which == "linear"))
    return found


def environment_of(rival: Rival, threads: int, any_threads: bool) -> dict[str, str]:
    """The whole environment of its process.

    Args:
        threads: the most that it will use, 0: as many as it likes. any_threads: whether compiled code must take any
            number of them.
    """
    changes = {**rival.environment, "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": str(int(any_threads))}
    if threads:
        changes["OMP_NUM_THREADS"] = str(threads)
    kept = {name: value for name, value in os.environ.items() if name not in changes}
    return {**kept, **{name: value for name, value in changes.items() if value is not None}}
