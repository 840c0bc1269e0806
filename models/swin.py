"""ELSA-Swin: Swin Transformer with ELSA in its first three stages (arXiv 2112.12786, section 4).

One trunk, ``SwinStages``, serves classification (``ELSASwin``) and detection and segmentation (``ELSASwinMaps``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .counterparts import local_block
from .layers import (
    PatchEmbed,
    PatchMerging,
    WindowBlock,
    init_linear_layers,
    resize_bias_table,
    resize_map,
    resize_position_table,
    select_stages,
)
from .maps import Frozen, Intermediates, last_map
from .mlp import apply_linear

ATTENTIONS = ("elsa", "hadamard", "neighbourhood", "parametric", "dynamic", "depthwise", "window")
BIASED = {"neighbourhood", "parametric", "window"}  # have a relative position bias that can be left out
GHOSTED = {"elsa", "hadamard", "neighbourhood", "parametric"}  # may have a ghost head
Arguments = dict[str, Any]


class Stage(nn.Module):
    """Blocks at one resolution: (B, H, W, C) → (B, H, W, C).

    ``downsample`` belongs to the stage as in the published names: it makes what the next stage takes.
    """

    def __init__(self, blocks: Sequence[nn.Module], dim: int, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample: nn.Module = PatchMerging(dim) if merge else nn.Identity()
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class SwinStages(nn.Module):
    """Patch embedding and four stages of ELSA or window-attention blocks, for images of any size.

    Args:
        shift_small_maps: see WindowBlock; the one rule in which the published models differ.
        img_size: nominal input size, an int or (height, width). Only the absolute position embedding depends on
            it; forward takes any size.
        in_chans: channels of the image.
        embed_dim: C of the first stage; each stage doubles it.
        depths, num_heads: per stage.
        attention: per stage, "elsa" or "window", or for comparison one of their counterparts: "hadamard" (ELSA without
            its ghost head), "neighbourhood", "parametric", "dynamic", "depthwise" (counterparts.py).
        elsa_kernel: K of all but windows.
        group_width, qk_scale: of Hadamard attention, see ELSA. ``qk_scale`` 1 is published.
        lam, gamma: λ, γ of the ghost head; None: 0, 1 for "elsa", else none. Also of "neighbourhood" and "parametric".
        position_bias: whether window, neighbourhood and parametric attention know the relative position.
        window_size: of the window-attention blocks; odd blocks shift by half of it.
        mlp_ratio, qkv_bias: of all blocks.
        drop_rate, proj_drop_rate, attn_drop_rate: dropout after the embedding, after projections, in attention.
        drop_path_rate: stochastic depth, rising linearly from 0 over the blocks.
        ape: adds an absolute position embedding, resized bicubically for other map sizes.
    """

    def __init__(
        self,
        *,
        shift_small_maps: bool,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        attention: Sequence[str] = ("elsa", "elsa", "elsa", "window"),
        elsa_kernel: int = 7,
        group_width: int = 4,
        lam: int | None = None,
        gamma: float | None = None,
        qk_scale: float | None = 1.0,
        position_bias: bool = True,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ape: bool = False,
    ) -> None:
        super().__init__()
        if not len(depths) == len(num_heads) == len(attention):
            raise ValueError(f"one entry per stage: depths {depths}, num_heads {num_heads}, attention {attention}")
        if unknown := set(attention) - set(ATTENTIONS):
            raise ValueError(f"attention of a stage must be one of {ATTENTIONS}, got {sorted(unknown)}")
        self.in_chans = in_chans
        self.stage_dims = tuple(embed_dim * 2**stage for stage in range(len(depths)))
        self.patch_embed = PatchEmbed(img_size, 4, in_chans, embed_dim)
        self.absolute_pos_embed = nn.Parameter(self._ape_table()) if ape else None
        self.pos_drop = nn.Dropout(drop_rate)

        if not position_bias and not BIASED & set(attention):
            raise ValueError(f"position_bias has no effect: {sorted(BIASED)} have one, and attention is {attention}")
        if (lam is not None or gamma is not None) and not GHOSTED & set(attention):
            raise ValueError(
                f"lam and gamma have no effect: {sorted(GHOSTED)} have ghost heads, attention is {attention}"
            )
        common: dict[str, Any] = dict(mlp_ratio=mlp_ratio, proj_drop=proj_drop_rate)
        local: dict[str, Any] = dict(kernel_size=elsa_kernel, qkv_bias=qkv_bias, attn_drop=attn_drop_rate)
        local |= dict(group_width=group_width, qk_scale=qk_scale, position_bias=position_bias)
        window: dict[str, Any] = dict(window_size=window_size, shift_small_maps=shift_small_maps, qkv_bias=qkv_bias)
        window |= dict(attn_drop=attn_drop_rate, position_bias=position_bias)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.layers = nn.ModuleList()
        for stage, (dim, kind, heads) in enumerate(zip(self.stage_dims, attention, num_heads, strict=True)):
            blocks: list[nn.Module] = []
            for index in range(depths[stage]):
                if kind == "window":
                    of: Arguments = dict(window, shifted=index % 2 == 1)
                    blocks.append(WindowBlock(dim, heads, drop_path=next(rates), **common, **of))
                else:
                    default = 1 if kind == "elsa" else 0
                    ghosts: Arguments = dict(lam=lam or 0, gamma=default if gamma is None else gamma)
                    blocks.append(local_block(kind, dim, heads, drop_path=next(rates), **common, **ghosts, **local))
            self.layers.append(Stage(blocks, dim, merge=stage < len(depths) - 1))

        init_linear_layers(self)

    def _ape_table(self) -> Tensor:
        """A freshly initialised position embedding, in the layout that the subclass's checkpoints have."""
        raise AssertionError("a subclass gives the layout")

    def _position_embedding(self, height: int, width: int) -> Tensor:
        """The absolute position embedding for a map: (1, height, width, C)."""
        raise AssertionError("a subclass gives the layout")

    def embed(self, image: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, C)."""
        x = self.patch_embed(image)
        if self.absolute_pos_embed is not None:
            height, width = x.shape[1:3]
            x = x + self._position_embedding(height, width)
        return self.pos_drop(x)

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The map (B, H, W, C_i) that each stage makes of the embedded image, before patch merging, one by one."""
        before: Stage | None = None
        for stage in self._stages():
            x = stage(x if before is None else before.downsample(x))
            before = stage
            yield x

    def _stages(self) -> list[Stage]:
        return [stage for stage in self.layers if isinstance(stage, Stage)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in backward instead of keeping its activations."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def adapt_state_dict(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of a model of other windows, or of another nominal input size, with its tables of position
        resized to this one's: the bias of windows by Swin Transformer's own way, which timm has, the absolute position
        embedding bicubically. A table that is no square is left as it is."""
        own, adapted = self.state_dict(), dict(tensors)
        for name, table in tensors.items():
            if (like := own.get(name)) is None or table.shape == like.shape:
                continue
            if name.endswith(".rb") and table.ndim == 2 and len(table) == len(like) and _side(table.shape[1]) % 2:
                adapted[name] = resize_bias_table(table, (_side(like.shape[1]) + 1) // 2)
            elif name.endswith(".relative_id") and f"{name.removesuffix('relative_id')}rb" in tensors:
                adapted[name] = like  # follows from the size of the windows
            elif name == "absolute_pos_embed" and table.ndim == 3 and (side := _side(table.shape[1])):
                adapted[name] = resize_position_table(table, (side, side), self.patch_embed.grid_size)
        return adapted

    def no_weight_decay(self) -> set[str]:
        """What is exempt from weight decay beside biases and norms. Published recipes do decay rb and ghost_head."""
        return set() if self.absolute_pos_embed is None else {"absolute_pos_embed"}


def _side(places: int) -> int:
    """Of a square of so many places; 0 where it is none."""
    side = math.isqrt(places)
    return side if side * side == places else 0


class ELSASwin(Intermediates, SwinStages):
    """ELSA-Swin for classification: the stages, LayerNorm, mean over positions, linear head. A timm model.

    Args:
        num_classes: 0 leaves out the head.
        global_pool: "avg", "max" or "" for none.
        shift_small_maps: False as published, see WindowBlock.
        **trunk: every other argument of SwinStages, checked there; ``drop_rate`` also acts before the head.
    """

    output_fmt = "NHWC"  # timm's name for the order of forward_features

    def __init__(
        self, num_classes: int = 1000, global_pool: str = "avg", shift_small_maps: bool = False, **trunk: Any
    ) -> None:
        super().__init__(shift_small_maps=shift_small_maps, **trunk)
        self.num_features = self.head_hidden_size = self.stage_dims[-1]
        self.stage_ends, self.norm_from = list(range(len(self.stage_dims))), len(self.stage_dims) - 1
        self.feature_info = [
            dict(num_chs=dim, reduction=4 * 2**stage, module=f"layers.{stage}.blocks.{len(layer.blocks) - 1}")
            for stage, (dim, layer) in enumerate(zip(self.stage_dims, self._stages(), strict=True))
        ]
        self.norm: nn.Module = nn.LayerNorm(self.num_features)
        self.head_drop = nn.Dropout(self.pos_drop.p)
        self.reset_classifier(num_classes, global_pool)

    def _ape_table(self) -> Tensor:
        height, width = self.patch_embed.grid_size
        return nn.init.trunc_normal_(torch.empty(1, height * width, self.stage_dims[0]), std=0.02)

    def _position_embedding(self, height: int, width: int) -> Tensor:
        assert self.absolute_pos_embed is not None
        table = resize_position_table(self.absolute_pos_embed, self.patch_embed.grid_size, (height, width))
        return table.unflatten(1, (height, width))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → the normalised last map, (B, ⌈H/32⌉, ⌈W/32⌉, C)."""
        return self.finish(last_map(self.maps(self.embed(x))))

    def finish(self, level: Tensor) -> Tensor:
        return self.norm(level)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map → logits (B, num_classes), or the pooled features with ``pre_logits``."""
        if self.global_pool:
            x = x.mean((1, 2)) if self.global_pool == "avg" else x.amax((1, 2))
        x = self.head_drop(x)
        return x if pre_logits else apply_linear(self.head, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops what the maps named by ``indices`` do not need; returns their indices."""
        wanted = select_stages(indices, len(self.stage_ends))
        last = max(wanted)
        self.stage_ends = self.stage_ends[: last + 1]
        self.layers = self.layers[: last + 1]
        self.layers[-1].downsample = nn.Identity()
        if last < len(self.stage_dims) - 1:
            prune_norm = prune_head = True
            self.num_features = self.head_hidden_size = self.stage_dims[last]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for ``num_classes`` classes (0: none); ``global_pool`` None keeps the pooling."""
        if global_pool is not None:
            if global_pool not in ("avg", "max", ""):
                raise ValueError(f"global_pool must be 'avg', 'max' or '', got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        if not num_classes:
            self.head: nn.Module = nn.Identity().train(self.training)
            return
        like = self.patch_embed.proj.weight
        head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        self.head = head.train(self.training)
        init_linear_layers(self.head)

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int] | None = None, window_size: int | None = None) -> None:
        """Resizes what has a size: the absolute position embedding, and the windows with their bias tables."""
        if img_size is not None:
            old_grid = self.patch_embed.grid_size
            self.patch_embed.set_input_size(img_size)
            if self.absolute_pos_embed is not None:
                table = resize_position_table(self.absolute_pos_embed, old_grid, self.patch_embed.grid_size)
                self.absolute_pos_embed = nn.Parameter(table, self.absolute_pos_embed.requires_grad)
        if window_size is not None:
            for block in self.modules():
                if isinstance(block, WindowBlock):
                    block.set_window_size(window_size)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that give each parameter its depth, for layer-wise learning-rate decay."""
        return dict(
            stem=r"^absolute_pos_embed|patch_embed",
            blocks=r"^layers\.(\d+)"
            if coarse
            else [
                (r"^layers\.(\d+)\.blocks\.(\d+)", None),
                (r"^layers\.(\d+)\.downsample", (99999,)),
                (r"^norm", (99999,)),
            ],
        )


class ELSASwinMaps(Frozen, SwinStages):
    """ELSA-Swin as a backbone: images of any size → maps at strides 4, 8, 16, 32, each after its own LayerNorm.

    Args:
        out_indices: the stages whose maps are returned.
        frozen_stages: −1 none; 0 freezes the embedding, n also the first n stages (eval mode, no gradients).
        shift_small_maps: True as published, see WindowBlock.
        **trunk: every other argument of SwinStages, checked there.

    Attributes:
        classifier_only: tensors that classifiers have and this has not.
        maps_only: pattern of those that classifiers have not, or that follow from the arguments.
    """

    classifier_only = ("norm", "head")
    maps_only = r"norm\d\.|.*\.relative_id$"

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        shift_small_maps: bool = True,
        **trunk: Any,
    ) -> None:
        super().__init__(shift_small_maps=shift_small_maps, **trunk)
        stages = len(self.stage_dims)
        self.choose(out_indices, stages, frozen_stages, stages)
        for index in self.out_indices:
            self.add_module(f"norm{index}", nn.LayerNorm(self.stage_dims[index]))
        for parameter in self._frozen_parameters():
            parameter.requires_grad_(False)

    def _ape_table(self) -> Tensor:
        return nn.init.trunc_normal_(torch.empty(1, self.stage_dims[0], *self.patch_embed.grid_size), std=0.02)

    def _position_embedding(self, height: int, width: int) -> Tensor:
        assert self.absolute_pos_embed is not None
        return resize_map(self.absolute_pos_embed, (height, width)).permute(0, 2, 3, 1)

    def frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, self.pos_drop, *self.layers[: self.frozen_stages]]

    def _frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Of the frozen modules, and of what no returned map depends on: gradient reducers refuse such leftovers."""
        last = self.layers[max(self.out_indices)]
        for module in (*self.frozen_modules(), last.downsample, *self.layers[max(self.out_indices) + 1 :]):
            yield from module.parameters()
        if self.frozen_stages >= 0 and self.absolute_pos_embed is not None:
            yield self.absolute_pos_embed

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C_in, H, W) → one (B, C_i, ⌈H/s⌉, ⌈W/s⌉) map per out index, s = 4 · 2^i."""
        levels = itertools.islice(self.maps(self.embed(x)), max(self.out_indices) + 1)
        return [
            self.get_submodule(f"norm{index}")(level).permute(0, 3, 1, 2)
            for index, level in enumerate(levels)
            if index in self.out_indices
        ]
