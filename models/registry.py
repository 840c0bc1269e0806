"""The variants of the ELSA models as a table; timm names are registered from it on import."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_function,
    register_notrace_module,
)
from torch import nn

from elsa.kernels import elsa_attention, hadamard_convolution, linear

from .layers import WindowBlock, channels_last_on_cpu, resize_map, resize_position_table
from .pretrained import adapt_state_dict
from .swin import ELSASwin
from .volo import ELSAVOLO


@dataclass(frozen=True)
class SwinSpec:
    """One ELSA-Swin: arguments of ELSASwin, and its default drop path in classification."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    group_width: int
    drop_path_rate: float
    window_size: int = 7

    network: ClassVar = ELSASwin
    cfg: ClassVar = dict(pool_size=(7, 7), crop_pct=0.9, first_conv="patch_embed.proj", classifier="head")


@dataclass(frozen=True)
class VOLOSpec:
    """One ELSA-VOLO: arguments of ELSAVOLO, and its default drop path in classification.

    The layers and widths are VOLO's; the first stage's K = 5, λ = γ = 1 and group width 8 are ELSAVOLO's defaults.
    """

    layers: tuple[int, int, int, int]
    embed_dims: tuple[int, int]
    num_heads: tuple[int, int]
    drop_path_rate: float
    mlp_ratio: float = 3.0
    stem_hidden_dim: int = 64

    network: ClassVar = ELSAVOLO
    cfg: ClassVar = dict(
        pool_size=None, crop_pct=0.96, first_conv="patch_embed.conv.0", classifier=("head", "aux_head")
    )


VARIANTS: dict[str, SwinSpec | VOLOSpec] = {
    # Small images and tests; not in the paper.
    "elsa_swin_nano": SwinSpec(32, (1, 1, 2, 1), (1, 2, 4, 8), 4, 0.0, window_size=4),
    "elsa_swin_tiny": SwinSpec(96, (2, 2, 6, 2), (3, 6, 12, 24), 4, 0.1),
    "elsa_swin_small": SwinSpec(96, (2, 2, 18, 2), (3, 6, 12, 24), 8, 0.3),
    "elsa_swin_base": SwinSpec(128, (2, 2, 18, 2), (4, 8, 16, 32), 8, 0.5),
    "elsa_volo_nano": VOLOSpec((2, 1, 1, 1), (64, 128), (2, 4), 0.0, stem_hidden_dim=32),
    "elsa_volo_d1": VOLOSpec((4, 4, 8, 2), (192, 384), (6, 12), 0.1),
    "elsa_volo_d2": VOLOSpec((6, 4, 10, 4), (256, 512), (8, 16), 0.2),
    "elsa_volo_d3": VOLOSpec((8, 8, 16, 4), (256, 512), (8, 16), 0.5),
    "elsa_volo_d4": VOLOSpec((8, 8, 16, 4), (384, 768), (12, 16), 0.5),
    "elsa_volo_d5": VOLOSpec((12, 12, 20, 4), (384, 768), (12, 16), 0.75, mlp_ratio=4.0, stem_hidden_dim=128),
}

# Weights are evaluated as in the published recipes: bicubic resize to 224 over the crop share, centre crop.
default_cfgs = generate_default_cfgs(
    {
        name: dict(
            url="",
            num_classes=1000,
            input_size=(3, 224, 224),
            interpolation="bicubic",
            fixed_input_size=False,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            paper_ids="arXiv:2112.12786",
            paper_name="ELSA: Enhanced Local Self-Attention for Vision Transformer",
            **spec.cfg,
        )
        for name, spec in VARIANTS.items()
    }
)


def _register(name: str, spec: SwinSpec | VOLOSpec) -> None:
    def construct(
        device: str | torch.device | None = None, dtype: torch.dtype | None = None, **arguments: Any
    ) -> nn.Module:
        with contextlib.nullcontext() if device is None else torch.device(device):
            network = spec.network(**arguments)
        return network if dtype is None else network.to(dtype)

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            construct,
            name,
            pretrained,
            pretrained_filter_fn=adapt_state_dict,
            feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
            **{**asdict(spec), **kwargs},
        )

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"{spec}; keyword arguments are those of {spec.network.__name__}, device and dtype."
    globals()[name] = register_model(entrypoint)


for _name, _spec in VARIANTS.items():
    _register(_name, _spec)

# One node each in graphs of torch.fx (timm's feature extraction): they decide by sizes, types and devices, which a
# graph does not have yet.
LEAVES = (elsa_attention, hadamard_convolution, linear, channels_last_on_cpu, resize_map, resize_position_table)
for _leaf in LEAVES:
    register_notrace_function(_leaf)
register_notrace_module(WindowBlock)
