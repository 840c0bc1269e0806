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
GOLDEN = Path(os.environ.get("ELSA_GOLDEN", ROOT.parent / "shared" / "golden"))


@pytest.fixture(scope="session")
def golden() -> SimpleNamespace:
    """The values computed by the authors' code: ``json(name)``, ``npz(name)``, ``fill_`` and ``tensor``."""
    recipe = GOLDEN / "recipe.py"
    if not recipe.exists():
        pytest.skip(f"no golden values in {GOLDEN}; ELSA_GOLDEN can name their folder")
    spec = importlib.util.spec_from_file_location("golden_recipe", recipe)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(
        json=lambda name: json.loads((GOLDEN / f"{name}.json").read_text()),
        npz=lambda name: np.load(GOLDEN / f"{name}.npz"),
        fill_=module.fill_,
        tensor=module.tensor,
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT
