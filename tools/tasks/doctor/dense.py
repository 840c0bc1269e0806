"""The packages for detection and segmentation: several of them share a name for ``import``, and pip does not notice."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder

from .compute import reason
from .finding import NOTE, OK, PROBLEM, Case, Finding
from .machine import version_of

# What gives each package: tested, as requirements/dense_mm.txt has it; others that serve; those that do not, and why.
TESTED = {"mmengine": ("onedl-mmengine", "0.10.12"), "mmcv": ("mmcv-lite", "2.1.0"),
          "mmdet": ("mmdet", "3.3.0"), "mmseg": ("mmsegmentation", "1.2.2")}  # fmt: skip
OTHERS = {"mmengine": ("mmengine",), "mmcv": ("onedl-mmcv", "mmcv"), "mmdet": ("onedl-mmdetection",),
          "mmseg": ("onedl-mmsegmentation",)}  # fmt: skip
UNFIT = {"mmcv": ("mmcv-full", "it is mmcv 1, and 2 is needed"),
         "mmseg": ("mmseg", "it segments Chinese words, and has nothing to do with mmsegmentation")}  # fmt: skip
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
ALONE = ("pycocotools",)  # needed beside them
SETUP = "bash scripts/setup.sh --dense"
PIP = f"{sys.executable} -m pip"


def stack(case: Case) -> Iterator[Finding]:
    """What is installed under each name, whether two packages lie over each other, and whether they can be imported.

    Without a recipe, or with one of them, what is broken is a problem; classification needs none of it.
    """
    needed = case.task in ("detection", "segmentation")
    level = NOTE if case.task == "classification" else PROBLEM
    absent = [name for name in (*TESTED, *ALONE) if not _providers(name) and importlib.util.find_spec(name) is None]
    if len(absent) == len(TESTED) + len(ALONE) and not needed:
        text = "not installed: detection and segmentation need them, classification does not"
        yield Finding("mm packages", NOTE, text, SETUP)
        return
    for name in TESTED:
        if name not in absent:
            yield from _provided(name, level)
    yield from _several_opencv()
    if absent:
        yield Finding("mm packages", PROBLEM if needed else NOTE, f"not installed: {', '.join(absent)}", SETUP)
    else:
        yield from _imported(level)


def _providers(name: str) -> list[str]:
    """Installed distributions that bring a package of this name."""
    known = (TESTED[name][0], *OTHERS[name], *(UNFIT.get(name, ())[:1])) if name in TESTED else (name,)
    return [distribution for distribution in known if version_of(distribution) is not None]


def _provided(name: str, level: str) -> Iterator[Finding]:
    found, (tested, version) = _providers(name), TESTED[name]
    mend = f"{PIP} uninstall -y {' '.join(found)} && {PIP} install --no-deps {tested}=={version}"
    listed = ", ".join(f"{each} {version_of(each)}" for each in found)
    unfit, why = UNFIT.get(name, ("", ""))
    if not found:
        yield Finding(name, NOTE, f"in {_place(name)}, which no installed package says to be its own", mend)
    elif len(found) > 1:
        text = f"{listed}: all are imported as {name}, and their files lie over each other"
        yield Finding(name, level, text, mend)
    elif found[0] == unfit:
        yield Finding(name, level, f"{listed}: {why}", mend)
    elif found[0] == "mmengine":
        text = f"{listed}: it cannot load its own checkpoints with torch ≥ 2.6; the tested one is {tested} {version}"
        yield Finding(name, NOTE, text, mend)
    elif (found[0], version_of(found[0])) != (tested, version):
        yield Finding(name, NOTE, f"{listed}; tested with {tested} {version}", mend)
    else:
        yield Finding(name, OK, listed)


def _place(name: str) -> str:
    spec = importlib.util.find_spec(name)
    return str(spec.origin or next(iter(spec.submodule_search_locations or ()), "")) if spec else "no folder"


def _several_opencv() -> Iterator[Finding]:
    found = [name for name in OPENCV if version_of(name) is not None]
    if len(found) > 1:
        text = f"{', '.join(found)}: all are imported as cv2, and their files lie over each other"
        mend = f"{PIP} uninstall -y {' '.join(found)} && {PIP} install opencv-python-headless"
        yield Finding("OpenCV", NOTE, text, mend)


def _imported(level: str) -> Iterator[Finding]:
    """Imports them as a training does, with the operators of ``elsa.models.mm`` where mmcv has none compiled."""
    compiled = _has_compiled_operators()
    try:
        importlib.import_module("elsa.models.mm")
    except Exception as error:
        yield Finding("elsa.models.mm", level, f"cannot be imported: {reason(error)}", SETUP)
        return
    for name in (*TESTED, *ALONE):
        try:
            importlib.import_module(name)
        except Exception as error:
            yield Finding(name, level, f"cannot be imported: {reason(error)}", _mend(name))
            return
    own = "torchvision's NMS and RoIAlign, which are all it takes"
    yield Finding("mm operators", OK, "compiled" if compiled else own)


def _has_compiled_operators() -> bool:
    """Whether mmcv brings its own; found without importing it."""
    spec = importlib.util.find_spec("mmcv")
    return bool(spec and PathFinder.find_spec("mmcv._ext", list(spec.submodule_search_locations or ())))


def _mend(name: str) -> str:
    distribution, version = TESTED.get(name, (name, ""))
    pinned = f"{distribution}=={version}" if version else distribution
    return f"{PIP} install --force-reinstall --no-deps {pinned}"
