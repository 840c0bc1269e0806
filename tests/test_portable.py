"""Nothing of ours needs what only Linux, or only a Unix, has."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from elsa.core import locks, write_folder
from elsa.engine import RunFolder, distributed, logbook

PACKAGES = ("core", "kernels", "models", "data", "engine", "tools")
ABSENT = ("fcntl", "resource", "termios", "pty", "grp", "pwd")
# Whoever of ours asks for one of these gets none; what other packages do is theirs.
IMPORT_ALL = """
import builtins, importlib, json, os, pathlib, sys
absent, modules = json.loads(sys.argv[1])
usual_import, usual_open = builtins.__import__, pathlib.Path.open

def without(name, globals=None, locals=None, fromlist=(), level=0):
    asks = (globals or {}).get("__name__", "")
    if name.partition(".")[0] in absent and asks.startswith("elsa"):
        raise ImportError(f"{asks} asks for {name}")
    return usual_import(name, globals, locals, fromlist, level)

def without_proc(path, *rest, **options):
    if str(path).startswith(("/proc", "/dev/shm")):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return usual_open(path, *rest, **options)

del os.sched_getaffinity
builtins.__import__, pathlib.Path.open = without, without_proc
for module in modules:
    importlib.import_module(module)

from elsa.kernels import backend_info, linear_info
backend_info()
"""


def modules(root):
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if path.name != "__main__.py":
                parts = path.relative_to(root).with_suffix("").parts
                yield ".".join(["elsa", *(part for part in parts if part != "__init__")])


def test_all_modules_import_without_what_other_systems_lack(root):
    call = [sys.executable, "-c", IMPORT_ALL, json.dumps([ABSENT, list(modules(root))])]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(call, capture_output=True, text=True, cwd="/", env=environment)
    assert done.returncode == 0, done.stderr


def test_folders_and_runs_are_written_where_there_are_no_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(locks, "fcntl", None)
    with (tmp_path / "file").open("a") as stream, pytest.raises(OSError, match="not supported"):
        locks.lock_file(stream)
    made = write_folder(tmp_path / "made", lambda root: root.is_dir(), lambda root: (root / "a").write_text("1"))
    assert (made / "a").read_text() == "1"
    with distributed("cpu") as runtime, RunFolder(tmp_path / "made", runtime, None, False).claimed():
        pass


def test_memory_where_nobody_knows_it(monkeypatch):
    cpu = torch.device("cpu")
    assert 0.1 < logbook.peak_memory_gb(cpu) < 100
    monkeypatch.setattr(logbook, "resource", None)
    assert math.isnan(logbook.peak_memory_gb(cpu))
