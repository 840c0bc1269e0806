"""Python, installed packages, disk and shared memory: what is asked of the system alone."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from .finding import NOTE, OK, PROBLEM, Case, Finding

DISTRIBUTION = "elsa-attention"
OLDEST = (3, 10)
GIB = 2**30
DISK = (1, 20)  # GiB free: below the first nothing can be saved, below the second not much
SHARED = Path("/dev/shm")
SHARED_MEMORY = (0.125, 2)  # GiB free: a container's usual 64 MiB hold no batch
PIP = f"{sys.executable} -m pip install"


def python(case: Case) -> Iterator[Finding]:
    version = platform.python_version()
    where = f"{version}, {sys.executable}, {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST:
        cure = "PYTHON=/path/to/python3.12 bash scripts/setup.sh"
        yield Finding("Python", PROBLEM, f"{where}: {'.'.join(map(str, OLDEST))} or newer is needed", cure)
    else:
        yield Finding("Python", OK, where)


def packages(case: Case) -> Iterator[Finding]:
    """What the package asks for beside what is installed; nothing is imported."""
    try:
        asked = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", NOTE, f"{DISTRIBUTION} is not installed, it runs from its sources", f"{PIP} -e .")
        return
    needed = [text.partition(";")[0].strip() for text in asked if "extra ==" not in text or is_of("train", text)]
    wrong = [finding for text in needed for finding in _compare(text)]
    yield from wrong
    if not wrong:
        yield Finding("packages", OK, f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)} has all that it asks for")


def is_of(extra: str, text: str) -> bool:
    """Whether a requirement belongs to this extra of the distribution."""
    return re.search(rf"extra == ['\"]{extra}['\"]", text) is not None


def require_extra(extra: str, verb: str) -> None:
    """Ends the command with a line where what this extra asks for is not installed; not where it runs from sources."""
    try:
        asked = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in asked if is_of(extra, text)]
    if lacking := [name for name in names if version_of(name) is None]:
        cure = f"pip install '{DISTRIBUTION}[{extra}]'"
        print(f"error: elsa {verb} needs {', '.join(lacking)}, not installed: {cure}", file=sys.stderr)
        sys.exit(2)


def _compare(text: str) -> Iterator[Finding]:
    name = re.split(r"[^\w.-]", text, maxsplit=1)[0]
    cure = f"{PIP} '{text}'"
    found = version_of(name)
    if found is None:
        yield Finding(name, PROBLEM, f"not installed; {text} is needed", cure)
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return
    if not Requirement(text).specifier.contains(found, prereleases=True):
        yield Finding(name, PROBLEM, f"{found}, but {text} is needed", cure)


def version_of(distribution: str) -> str | None:
    """Of what is installed; None where it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requirement(name: str) -> str:
    """How the package asks for another, ``torch>=2.12``; the name alone where it does not."""
    try:
        asked = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        asked = []
    return next((text.partition(";")[0].strip() for text in asked if re.match(rf"{name}\b(?!-)", text)), name)


def disk(case: Case) -> Iterator[Finding]:
    """The current folder, where runs are written, and the one for temporary files."""
    yield from _room("disk", Path.cwd(), "du -sh * | sort -h; or --output FOLDER on another disk")
    temporary = Path(tempfile.gettempdir())
    if os.stat(temporary).st_dev != os.stat(Path.cwd()).st_dev:
        yield from _room("temporary files", temporary, "export TMPDIR=FOLDER on another disk")


def _room(subject: str, folder: Path, cure: str) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free / GIB
    text = f"{free:.3g} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        yield Finding(subject, NOTE, f"{folder} cannot be written to", cure)
    level = _level(free, DISK)
    yield Finding(subject, level, text, "" if level == OK else cure)


def shared_memory(case: Case) -> Iterator[Finding]:
    """Where loader processes put their batches."""
    if not SHARED.is_dir():
        yield Finding(str(SHARED), OK, "this system has none and needs none")
        return
    free = shutil.disk_usage(SHARED).free / GIB
    level = _level(free, SHARED_MEMORY)
    cure = f"docker run --shm-size=16g …; or mount -o remount,size=16g {SHARED}; or no loader processes: DATA.WORKERS=0"
    yield Finding(str(SHARED), level, f"{free:.3g} GiB free for loader processes", "" if level == OK else cure)


def _level(free: float, bounds: tuple[float, float]) -> str:
    return PROBLEM if free < bounds[0] else NOTE if free < bounds[1] else OK
