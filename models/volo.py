"""ELSA-VOLO: VOLO (arXiv 2106.13112) with ELSA instead of outlook attention in its first stage (arXiv 2112.12786).

Stem, transformer stages, class attention and heads are timm's; this file gives the first stage, images of any size,
and what token labeling (arXiv 2104.10858) needs of the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models import checkpoint_seq
from timm.models.volo import VOLO
from torch import Tensor, fx, nn

from .elsa import ELSABlock
from .layers import crop_map, halve_by_maximum, init_linear_layers, lacking, pad_to_multiple, resize_map, select_stages
from .maps import Frozen, Intermediates, last_map
from .mlp import apply_linear
from .transformer import use_our_layers

PATCH = 8  # pixels between positions of the first stage
ATTENTIONS = ("elsa", "outlook")


class ELSAVOLO(Intermediates, VOLO):
    """A first stage of ELSA blocks at stride 8, transformer stages at stride 16, class attention, two heads.

    The logits are those of the class token plus half the largest ones of the patch tokens. State-dict names are VOLO's.
    No ELSA-VOLO was released: that it used the default arguments of the ELSA blocks is our reading of the paper.

    Args:
        layers: blocks of the first stage and of the three transformer stages.
        embed_dims, num_heads: of the first stage, and of the transformer stages and class attention.
        attention: of the first stage, "elsa"; "outlook" makes it VOLO.
        elsa_kernel, group_width, lam, gamma, qk_scale: of the ELSA blocks, see ELSA.
        img_size: nominal input size, an int or (height, width), multiples of 16; sets the size of the position
            embedding, which forward resizes to other inputs.
        in_chans: channels of the image.
        num_classes: 0 leaves out both heads.
        global_pool: "token", "avg" or "" for none.
        stem_hidden_dim: channels of the convolutional stem.
        mlp_ratio, qkv_bias: of all blocks.
        drop_rate, pos_drop_rate, attn_drop_rate: dropout before the heads, after the position embedding, in attention.
        drop_path_rate: stochastic depth, rising linearly over all blocks; as published the first stage has none.

    Attributes:
        token_stride: pixels between the patch tokens.
    """

    token_stride = 2 * PATCH
    norm_from = 2  # of the modules of ``network``: the first stage and the downsampling come before

    def __init__(
        self,
        *,
        layers: Sequence[int] = (4, 4, 8, 2),
        embed_dims: tuple[int, int] = (192, 384),
        num_heads: tuple[int, int] = (6, 12),
        attention: str = "elsa",
        elsa_kernel: int = 5,
        group_width: int = 8,
        lam: int = 1,
        gamma: float = 1,
        qk_scale: float | None = 1.0,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        stem_hidden_dim: int = 64,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f"attention of the first stage must be one of {ATTENTIONS}, got {attention!r}")
        if len(layers) != 4 or len(embed_dims) != 2 or len(num_heads) != 2:
            raise ValueError(
                "VOLO has four stages of two widths: "
                f"layers {tuple(layers)}, embed_dims {tuple(embed_dims)}, num_heads {tuple(num_heads)}"
            )
        _check_pooling(global_pool)
        super().__init__(
            list(layers),
            img_size=_whole_patches(img_size),  # type: ignore[arg-type]  # timm takes pairs, and says int
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            patch_size=PATCH,
            stem_hidden_dim=stem_hidden_dim,
            embed_dims=[embed_dims[0], *3 * [embed_dims[1]]],
            num_heads=[num_heads[0], *3 * [num_heads[1]]],
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        if attention == "elsa":
            block: dict[str, Any] = dict(
                mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, attn_drop=attn_drop_rate, kernel_size=elsa_kernel
            )
            block |= dict(group_width=group_width, lam=lam, gamma=gamma, qk_scale=qk_scale)
            self.network[0] = nn.Sequential(
                *(ELSABlock(embed_dims[0], num_heads[0], **block) for _ in range(layers[0]))
            )
            init_linear_layers(self.network[0])
        use_our_layers(self)

    # ---- the stages

    def embed(self, image: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, ⌈H/8⌉, ⌈W/8⌉, C): the stem, after zero padding at the right and at the bottom."""
        height, width = image.shape[-2:]
        image = F.pad(image, (0, lacking(width, PATCH), 0, lacking(height, PATCH)))
        return self.patch_embed(image).permute(0, 2, 3, 1)

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The map (B, H, W, C) that each module of ``network`` makes of the embedded image, one after the other."""
        for index, module in enumerate(self.network):
            if index == 1:
                x = pad_to_multiple(x, 2)  # the downsampling
            if index == 2:
                x = self.pos_drop(x + _resized(self.pos_embed, x.shape[1:3]))
            recompute = self.grad_checkpointing and torch.is_grad_enabled() and isinstance(module, nn.Sequential)
            x = checkpoint_seq(module, x, use_reentrant=False) if recompute else module(x)
            yield x

    def forward_features(self, x: Tensor, mix_box: Tensor | None = None) -> Tensor:
        """Images → normalised tokens, the class token first: (B, 1 + N, C)."""
        x = self.embed(x)
        if mix_box is not None:
            x = torch.where(self._in_box(mix_box, x), x.flip(0), x)
        return self.finish(last_map(self.maps(x)))

    def finish(self, level: Tensor) -> Tensor:
        """The last map → its N = ⌈H/16⌉ · ⌈W/16⌉ tokens, row by row, after class attention and the final LayerNorm."""
        tokens = level.flatten(1, 2)
        return self.norm(tokens if self.post_network is None else self.forward_cls(tokens))

    # ---- classification and token labeling

    def forward(  # type: ignore[override]  # token labeling asks for more
        self, x: Tensor, mix_box: Tensor | None = None, token_logits: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, C_in, H, W) → logits (B, classes).

        Args:
            x: the images; their sizes may be any, and differ from the nominal one.
            mix_box: mix-token: (top, left, bottom, right) in patch tokens, integers of shape (4,), drawn outside.
                Inside it every image gets the embedding of its mirror in the batch (the first that of the last, …),
                and the token logits are put back to the image that they came from.
            token_logits: returns the logits of the class token (B, classes) and of the patch tokens (B, N, classes)
                apart, as token labeling trains them.

        Raises:
            ValueError: a box with an odd batch, whose images cannot be paired, or no head that gives token logits.
        """
        if isinstance(x, fx.Proxy):  # arguments with defaults are traced, too: a graph is one of the images alone
            mix_box, token_logits = None, False
        if mix_box is not None and len(x) % 2:
            raise ValueError(f"mix-token pairs the images of a batch: the batch must be even, got {len(x)} images")
        if not token_logits:
            return self.forward_head(self.forward_features(x, mix_box))
        if self.aux_head is None:
            raise ValueError(
                "token logits need a model with classes and class attention; this one has no auxiliary head"
            )
        size = tuple(-(-side // self.token_stride) for side in x.shape[-2:])
        tokens = self.head_drop(self.forward_features(x, mix_box))
        of_patches = apply_linear(self.aux_head, tokens[:, 1:])
        if mix_box is not None:
            of_patches = of_patches.unflatten(1, size)
            mixed = self._in_box(mix_box, of_patches, 1)
            of_patches = torch.where(mixed, of_patches.flip(0), of_patches).flatten(1, 2)
        return self.head(tokens[:, 0]), of_patches

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The normalised tokens → logits (B, classes), or the pooled features with ``pre_logits``."""
        pooled = x.mean(1) if self.global_pool == "avg" else x[:, 0] if self.global_pool == "token" else x
        pooled, x = self.head_drop(pooled), self.head_drop(x)
        if pre_logits:
            return pooled
        out = apply_linear(self.head, pooled)
        if self.aux_head is None or not self.global_pool:
            return out
        return out + 0.5 * apply_linear(self.aux_head, x[:, 1:]).max(1).values

    def _in_box(self, box: Tensor, x: Tensor, scale: int = 2) -> Tensor:
        """Which positions of a map (B, H, W, C) lie in the box of patch tokens: (1, H, W, 1), ``scale`` per token."""
        top, left, bottom, right = (box.to(x.device) * scale).unbind()
        row, column = (torch.arange(size, device=x.device) for size in x.shape[1:3])
        rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
        return (rows[:, None] & columns)[None, ..., None]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Fresh heads for ``num_classes`` classes (0: none); ``global_pool`` None keeps the pooling."""
        if global_pool is not None:
            _check_pooling(global_pool)
        super().reset_classifier(num_classes, global_pool)
        for head in (self.head, self.aux_head):
            if head is not None:
                init_linear_layers(head)

    # ---- maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops what the maps named by ``indices`` do not need; returns their indices."""
        wanted = select_stages(indices, len(self.stage_ends))
        kept = super().prune_intermediate_layers(wanted, prune_norm, prune_head)
        self.stage_ends = self.stage_ends[: max(kept) + 1]
        return kept

    # ---- sizes

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resizes the position embedding for good to that of another nominal input size."""
        grid = tuple(side // self.token_stride for side in _whole_patches(img_size))
        self.pos_embed = nn.Parameter(
            _resized(self.pos_embed.detach(), grid).contiguous(), self.pos_embed.requires_grad
        )

    def adapt_state_dict(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of a model of another nominal input size with its position embedding resized to this one's."""
        table, grid = tensors.get("pos_embed"), tuple(self.pos_embed.shape[1:3])
        if table is None or table.ndim != 4 or table.shape[1:3] == grid:
            return tensors
        return {**tensors, "pos_embed": _resized(table, grid).contiguous()}


class ELSAVOLOMaps(Frozen, ELSAVOLO):
    """ELSA-VOLO as a backbone: images of any size → maps at strides 4, 8, 16, 32, each after its own LayerNorm.

    VOLO has two strides, 8 and 16. As in the simple feature pyramid of ViTDet (arXiv 2203.16527) a transposed
    convolution makes stride 4 of the first stage's map, and max pooling stride 32 of the last one's. This way to dense
    tasks is ours: the paper has none for VOLO.

    Args:
        out_indices: the levels that are returned; 0 and 1 have the first stage's width, 2 and 3 the others'.
        frozen_stages: −1 none; 0 freezes the stem, n also the first n of the four stages (eval mode, no gradients).
        **trunk: every other argument of ELSAVOLO, checked there.
    """

    classifier_only = ("norm", "head", "aux_head", "post_network", "cls_token")
    maps_only = r"(norm\d|upsample)\."

    def __init__(self, out_indices: Sequence[int] = (0, 1, 2, 3), frozen_stages: int = -1, **trunk: Any) -> None:
        super().__init__(**{**trunk, "num_classes": 0, "global_pool": "avg"})
        self.choose(out_indices, 4, frozen_stages, len(self.stage_ends))
        self.post_network, self.norm = None, nn.Identity()
        self.register_parameter("cls_token", None)
        narrow, wide = trunk.get("embed_dims", (192, 384))
        if 0 in self.out_indices:
            self.upsample = nn.ConvTranspose2d(narrow, narrow, 2, 2)
        for index in self.out_indices:
            self.add_module(f"norm{index}", nn.LayerNorm(narrow if index < 2 else wide))
        if max(self.out_indices) < 2:
            self.network = self.network[:1]
            self.pos_embed.requires_grad_(False)
        for module in self.frozen_modules():
            module.requires_grad_(False)
        if frozen_stages > 1:
            self.pos_embed.requires_grad_(False)

    def frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        ends = [-1, *self.stage_ends]
        return [self.patch_embed, *self.network[: ends[self.frozen_stages] + 1]]

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]  # maps, not logits
        """(B, C_in, H, W) → one (B, C_i, ⌈H/s⌉, ⌈W/s⌉) map per out index, s = 4 · 2^i."""
        height, width = x.shape[-2:]
        of_stages = [level.permute(0, 3, 1, 2) for level in self.maps(self.embed(x))]
        maps = []
        for index in self.out_indices:
            level = of_stages[0 if index < 2 else -1]
            if index == 0:
                level = self.upsample(level).permute(0, 2, 3, 1)
                level = crop_map(level, (height + 3) // 4, (width + 3) // 4).permute(0, 3, 1, 2)
            elif index == 3:
                level = halve_by_maximum(level)
            norm = self.get_submodule(f"norm{index}")
            maps.append(norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return maps


def _resized(table: Tensor, grid: Sequence[int]) -> Tensor:
    """Position embedding (1, H, W, C) → (1, *grid, C), bicubic."""
    height, width = grid
    return resize_map(table.permute(0, 3, 1, 2), (height, width)).permute(0, 2, 3, 1)


def _whole_patches(img_size: int | tuple[int, int]) -> tuple[int, int]:
    size, stride = to_2tuple(img_size), ELSAVOLO.token_stride
    if any(side < stride or side % stride for side in size):
        near = tuple(max(stride, round(side / stride) * stride) for side in size)
        raise ValueError(f"img_size must be a multiple of the patch, {stride} pixels, got {img_size}; near: {near}")
    return size


def _check_pooling(global_pool: str) -> None:
    if global_pool not in ("token", "avg", ""):
        raise ValueError(f"global_pool must be 'token', 'avg' or '', got {global_pool!r}")
