"""The Python code of docs/extend.md runs as it stands, block after block, and does what the text says."""

from __future__ import annotations

import re

import pytest
import torch

from elsa.models import ELSA


@pytest.fixture(scope="module")
def ran(root):
    """The names that the blocks leave."""
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs/extend.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {"__name__": "extend"}
    exec(compile(blocks[0], "docs/extend.md", "exec"), names)
    after_first = dict(names)
    exec(compile(blocks[1], "docs/extend.md", "exec"), names)
    return after_first, names


def test_the_module_replaces_a_vision_transformers_attention_and_learns(ran):
    names, _ = ran
    model = names["model"]
    assert len(model.blocks) == sum(isinstance(module, ELSA) for module in model.modules()) == 12
    assert names["loss"].isfinite()
    attention = model.blocks[0].attn
    assert all(parameter.grad.abs().sum() > 0 for parameter in attention.parameters())
    tokens = torch.randn(1, 49, 192)
    changed = tokens.clone()
    changed[0, 42:] += 1  # the last of 7 rows: with K = 5 the two above it see that
    with torch.no_grad():
        difference = (attention.eval()(tokens) - attention(changed)).abs()
    assert (difference.amax(-1).view(7, 7).amax(1) > 1e-5).tolist() == [False] * 4 + [True] * 3


def test_what_is_taken_out_by_name(ran):
    _, names = ran
    assert names["taken"]["layers.1.blocks.0.mlp.fc1"].shape == (1, 8, 8, 256)
