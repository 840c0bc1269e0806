"""What the command line's words stand for; a mistake is one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import torch

from elsa.core import did_you_mean


class OneLineParser(argparse.ArgumentParser):
    """Errors without the usage before them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def subset(allowed: Collection[str], everything: bool = False) -> Callable[[str], tuple[str, ...]]:
    """``A,B`` of the allowed names; with ``everything`` also ``all``."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(allowed if everything and text == "all" else filter(None, text.split(",")))
        for name in names:
            if name not in allowed:
                known = ", ".join(allowed)
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {known}{did_you_mean(name, allowed)}")
        if not names:
            raise argparse.ArgumentTypeError(f"name at least one of {', '.join(allowed)}")
        return names

    return parse


def at_least(kind: type, least: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return parse


def image_size(text: str) -> tuple[int, int]:
    """``N`` or ``HEIGHTxWIDTH``."""
    if text.count("x") > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor HEIGHTxWIDTH")
    sides = [at_least(int, 32)(side) for side in text.split("x")]
    return sides[0], sides[-1]


def counts(least: int) -> Callable[[str], tuple[int, ...]]:
    """``N,N``, each once, in the order given."""
    return lambda text: tuple(dict.fromkeys(at_least(int, least)(part) for part in text.split(",")))


def thread_counts(text: str) -> tuple[int, ...]:
    """``N,all``."""
    everything = torch.get_num_threads()
    return tuple(dict.fromkeys(everything if part == "all" else at_least(int, 1)(part) for part in text.split(",")))


def device(text: str) -> torch.device:
    """cpu, cuda or cuda:N, where it is there."""
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of cpu, cuda, cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text}: torch {torch.__version__} sees no CUDA GPU")
    if index and int(index) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return torch.device(text)
