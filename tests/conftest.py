"""Fixtures that all tests share."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

# Before torch is imported: idle threads must not spin, or two test processes starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def golden() -> SimpleNamespace:
    """The values computed by the authors' code (tests/golden): ``json(name)``, ``npz(name)``, ``fill_``, ``tensor``."""
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return SimpleNamespace(
        json=lambda name: json.loads((GOLDEN / f"{name}.json").read_text()),
        npz=lambda name: np.load(GOLDEN / f"{name}.npz"),
        fill_=recipe.fill_,
        tensor=recipe.tensor,
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT
