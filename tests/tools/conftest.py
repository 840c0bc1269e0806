"""Running the tools as a user does, and a data set and configuration small enough for seconds."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        """The tool ended with one line that says all of ``parts``, exit code 2, no traceback."""
        assert self.code == 2, self.err
        last = self.err.splitlines()[-1]
        assert last.startswith("error: ")
        for part in parts:
            assert part in last
        assert "Traceback" not in self.err


@pytest.fixture
def tool(root, monkeypatch):
    """``tool("train", *arguments)`` runs tools/train.py in this process: exit code and what it printed."""
    monkeypatch.syspath_prepend(str(root / "tools"))

    def call(verb: str, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"tools/{verb}.py", *map(str, arguments)])
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(root / "tools" / f"{verb}.py"), run_name="__main__")
            except SystemExit as leaving:
                code = leaving.code or 0
        return Outcome(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def start(root):
    """``start([prefix of the command], "train", *arguments)`` starts the tool in a process of its own."""
    processes = []

    def call(prefix: list[str], verb: str, *arguments: object) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, *prefix, str(root / "tools" / f"{verb}.py"), *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield call
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Four classes of striped 16×16 images, 12 to train and 5 to validate each."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for label in range(4):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                stripes = np.add.outer(np.arange(16) * (label % 2), np.arange(16) * (label // 2)) * 40 % 255
                noisy = stripes[..., None] + random.integers(0, 60, (16, 16, 3))
                Image.fromarray(noisy.clip(0, 255).astype("uint8")).save(folder / f"{number}.png")
    return root


@pytest.fixture
def config(tmp_path, images) -> Path:
    """A very small ELSA-Swin on those images: 3 epochs of 6 steps."""
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""
MODEL: {{NAME: elsa_swin_nano, NUM_CLASSES: 4, DROP_PATH: 0.1,
        KWARGS: {{embed_dim: 8, num_heads: [1, 1, 2, 2], elsa_kernel: 3, window_size: 3}}}}
DATA: {{ROOT: {images}, IMG_SIZE: 32, BATCH: 8, EVAL_BATCH: 7, WORKERS: 0}}
TRAIN: {{EPOCHS: 3, WARMUP_EPOCHS: 1, COOLDOWN_EPOCHS: 0, LR: 3.0e-3, EMA_DECAY: 0.5}}
AMP: {{ENABLED: false}}
LOG: {{EVERY: 2, TENSORBOARD: false}}
"""
    )
    return path
