"""What of a network is divided block by block."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import elsa.models  # noqa: F401  registers the names
from elsa.engine.parallel import blocks


@pytest.mark.parametrize(("name", "count", "kinds"), [
    ("elsa_swin_tiny", 12, {"ELSABlock", "WindowBlock"}),
    ("elsa_volo_d1", 20, {"ELSABlock", "Transformer", "ClassBlock"}),
    ("swin_tiny_patch4_window7_224", 12, {"SwinTransformerBlock"}),
    ("convnext_tiny", 18, {"ConvNeXtBlock"}),
    ("resnet18", 8, {"BasicBlock"}),
])  # fmt: skip
def test_every_block_is_found_once(name, count, kinds):
    """As many as the paper counts, whichever way a network nests its lists; together nearly all of its parameters."""
    with torch.device("meta"):
        model = timm.create_model(name)
    found = blocks(model)
    assert len(found) == len(set(found)) == count
    assert {type(block).__name__ for block in found} == kinds
    share = sum(p.numel() for block in found for p in block.parameters()) / sum(p.numel() for p in model.parameters())
    assert 0.85 < share < 1


def test_a_detectors_heads_stay_together():
    """Which of their parts compute may differ from process to process."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(*(nn.TransformerEncoderLayer(8, 1, 8) for _ in range(3)))
            self.head = nn.Sequential(*(nn.TransformerEncoderLayer(8, 1, 8) for _ in range(3)))

    model = Detector()
    assert blocks(model) == list(model.backbone)
