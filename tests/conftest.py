"""Fixtures that all tests share."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace

# Before torch is imported: idle threads must not spin, or two test processes starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"

# A shell's background job ignores SIGINT, and so would the runs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="processes that test_soak.py kills")
    parser.addoption("--soak-seed", type=int, default=0, help="of when and which")


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """pytest's, also after a tool that ran in this process took the project's log to itself."""
    monkeypatch.setattr(logging.getLogger("elsa"), "propagate", True)
    return caplog


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


def _write_coco(root: Path, names: tuple[str, ...], train: int = 8, val: int = 3) -> Path:
    """Bright squares on noise in COCO's layout, two to a picture, of some of the classes."""
    random = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train2017", train), ("val2017", val)):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            width, height = (72, 48) if number % 3 else (48, 72)
            pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for _ in range(2):
                x, y = int(random.integers(0, width - 24)), int(random.integers(0, height - 24))
                pixels[y : y + 20, x : x + 20] = 200
                outline = [x, y, x + 20, y, x + 20, y + 20, x, y + 20]
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=number, category_id=int(random.integers(1, 4)), area=400,
                    bbox=[x, y, 20, 20], iscrowd=0, segmentation=[outline],
                ))  # fmt: skip
            Image.fromarray(pixels).save(root / split / f"{number:03d}.jpg")
            images.append(dict(id=number, file_name=f"{number:03d}.jpg", width=width, height=height))
        categories = [dict(id=number + 1, name=name) for number, name in enumerate(names)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def write_coco():
    """``write_coco(root, class names, train=8, val=3)``: a small data set in COCO's layout."""
    return _write_coco


class GraphCounter:
    """A backend of torch.compile that computes as without a compiler, and counts graphs."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward

    def since(self):
        """Graphs that were made since it was last asked."""
        graphs, self.graphs = self.graphs, 0
        return graphs


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield GraphCounter()
    torch._dynamo.reset()
