"""The variants of the ELSA models as a table; timm names are registered from it on import."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from .swin import ELSASwin


@dataclass(frozen=True)
class SwinSpec:
    """One ELSA-Swin: arguments of ELSASwin, and its default drop path in classification."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    group_width: int
    drop_path_rate: float
    window_size: int = 7


VARIANTS: dict[str, SwinSpec] = {
    # Small images and tests; not in the paper.
    "elsa_swin_nano": SwinSpec(32, (1, 1, 2, 1), (1, 2, 4, 8), 4, 0.0, window_size=4),
    "elsa_swin_tiny": SwinSpec(96, (2, 2, 6, 2), (3, 6, 12, 24), 4, 0.1),
    "elsa_swin_small": SwinSpec(96, (2, 2, 18, 2), (3, 6, 12, 24), 8, 0.3),
    "elsa_swin_base": SwinSpec(128, (2, 2, 18, 2), (4, 8, 16, 32), 8, 0.5),
}

# The released weights are evaluated as in the published recipe: bicubic resize to 224 / 0.9, centre crop.
default_cfgs = generate_default_cfgs(
    {
        name: dict(
            url="",
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=(7, 7),
            crop_pct=0.9,
            interpolation="bicubic",
            fixed_input_size=False,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            first_conv="patch_embed.proj",
            classifier="head",
            paper_ids="arXiv:2112.12786",
            paper_name="ELSA: Enhanced Local Self-Attention for Vision Transformer",
        )
        for name in VARIANTS
    }
)


def _register(name: str, spec: SwinSpec) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            ELSASwin,
            name,
            pretrained,
            feature_cfg=dict(out_indices=tuple(range(len(spec.depths))), feature_cls="getter"),
            **{**asdict(spec), **kwargs},
        )

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"ELSA-Swin, {spec}; keyword arguments are those of ELSASwin."
    globals()[name] = register_model(entrypoint)


for _name, _spec in VARIANTS.items():
    _register(_name, _spec)
