"""What the tests of the models share."""

from __future__ import annotations

import pytest
import torch

import elsa.models  # noqa: F401  # registers the names in timm


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
