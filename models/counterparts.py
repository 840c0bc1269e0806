"""What the paper compares ELSA with: other local operators for the same slot (arXiv 2112.12786, section 3).

Two questions divide them. *Channel setting*: how many heads share a map of weights, and whether static matrices are
added (ghost head). *Spatial processing*: where the weights come from (a parameter, the position alone, dot products,
the Hadamard product), whether they know the relative position, and whether they are applied to a window or to each
position's neighbourhood. Windowed self-attention is ``WindowAttention`` in layers.py, Hadamard attention is ELSA.

All take and give maps (B, H, W, C) and know the outside of the map as zero, like ELSA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elsa.kernels import elsa_attention, neighbour_products, neighbour_sums

from .elsa import ELSABlock, GhostHead, LocalBlock
from .mlp import apply_linear

GENERATIONS = ("dot", "parametric")
BORDERS = ("zero", "inside")


class NeighbourhoodAttention(GhostHead):
    """Self-attention of each position to its K×K neighbourhood: (B, H, W, C) → (B, H, W, C).

    Args:
        dim, num_heads: C, and G heads of C / G channels.
        kernel_size, dilation: K, odd, and the distance between taps.
        generation: where the logits come from: "dot" products of queries and keys, or "parametric", a linear layer on
            the position's own features.
        position_bias: adds a learned bias for each head and relative position.
        lam, gamma: λ and γ of a ghost head, as in ELSA; 0 leaves each out.
        border: "zero": the neighbourhood reaches beyond the map, where keys and values are zero, as in ELSA. "inside":
            it is moved inside, as in neighbourhood attention (arXiv 2204.07143), whose numbers these are; the map must
            have K positions a side.
        qkv_bias: whether the projection has a bias.
        qk_scale: of the dot products; None: (C / G)^−½.
        attn_drop, proj_drop: dropout of the weights, and after the last projection.

    Raises:
        ValueError: a size that does not divide, a name that does not exist, or a combination without effect.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_size: int = 7,
        dilation: int = 1,
        generation: str = "dot",
        position_bias: bool = True,
        lam: int = 0,
        gamma: float = 0,
        border: str = "zero",
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide the channels: {dim} channels, {num_heads} heads")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        for name, given, known in (("generation", generation, GENERATIONS), ("border", border, BORDERS)):
            if given not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {given!r}")
        if border == "inside" and (lam or gamma or generation != "dot"):
            raise ValueError("border 'inside' is for dot products without a ghost head")
        self.dim, self.num_heads, self.kernel_size, self.dilation = dim, num_heads, kernel_size, dilation
        self.border, self.attn_drop = border, attn_drop
        self.scale = (dim / num_heads) ** -0.5 if qk_scale is None else qk_scale
        logits = num_heads * kernel_size**2
        self.pre_proj = nn.Linear(dim, 3 * dim if generation == "dot" else dim, bias=qkv_bias)
        self.generate = None if generation == "dot" else nn.Linear(dim, logits, bias=False)
        reach = 2 * kernel_size - 1  # of relative positions; those of "zero" are the K×K in the middle
        side = reach if border == "inside" else kernel_size
        self.rpb = nn.Parameter(torch.zeros(num_heads, side, side)) if position_bias else None
        self.make_ghosts(dim, kernel_size, lam, gamma)
        self.post_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_ghosts()
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        packed = apply_linear(self.pre_proj, x)
        side = self.kernel_size if self.border == "zero" else 2 * self.kernel_size - 1
        of: dict[str, Any] = dict(num_heads=self.num_heads, kernel_size=side, dilation=self.dilation)
        if self.generate is None:
            query, key, packed = packed.split(self.dim, dim=-1)
            logits = neighbour_products(query * self.scale, key, **of)
        else:
            logits = apply_linear(self.generate, x)
        if self.rpb is not None:
            logits = logits + self.rpb.flatten().to(logits.dtype)
        if self.border == "inside":
            logits = logits.masked_fill(self._beyond(x.shape[1], x.shape[2], x.device), -torch.inf)
        drop = self.attn_drop if self.training else 0.0
        out = elsa_attention(packed, logits, *self.ghost_maps(), attn_drop=drop, **of)
        return self.proj_drop(apply_linear(self.post_proj, out))

    def _beyond(self, height: int, width: int, device: torch.device) -> Tensor:
        """Which of the (2K − 1)² taps are not in the K×K window moved inside the map: (H, W, G·(2K − 1)²)."""
        rows, columns = (self._inside(length, device) for length in (height, width))
        inside = rows[:, None, :, None] & columns[None, :, None, :]
        return ~inside.flatten(2).repeat(1, 1, self.num_heads)

    def _inside(self, length: int, device: torch.device) -> Tensor:
        """The same along one axis: (length, 2K − 1). Positions d apart are neighbours."""
        position = torch.arange(length, device=device)
        index, count = position // self.dilation, (length - 1 - position % self.dilation) // self.dilation + 1
        if length < self.kernel_size * self.dilation:
            least = self.kernel_size * self.dilation
            raise ValueError(f"border 'inside' needs maps of {least} positions a side, got one of {length}")
        first = (index - self.kernel_size // 2).clamp(min=0).minimum(count - self.kernel_size)
        neighbour = index[:, None] + torch.arange(1 - self.kernel_size, self.kernel_size, device=device)
        return (neighbour >= first[:, None]) & (neighbour < first[:, None] + self.kernel_size)


class Depthwise(nn.Module):
    """A depthwise K×K convolution between two linear layers: static weights of each channel, the same everywhere.

    (B, H, W, C) → (B, H, W, C); arguments as of NeighbourhoodAttention, but that there are no heads.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int = 7,
        dilation: int = 1,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        self.pre_proj = nn.Linear(dim, dim, bias=qkv_bias)
        reach = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=reach, dilation=dilation, groups=dim)
        self.post_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        x = apply_linear(self.pre_proj, x).permute(0, 3, 1, 2)  # a channels-last NCHW view
        x = self.conv(x).permute(0, 2, 3, 1)
        return self.proj_drop(apply_linear(self.post_proj, x))


class DynamicFilters(nn.Module):
    """Decoupled dynamic filters (arXiv 2104.14107): a spatial filter of each position times one of each channel.

    The spatial filters, shared by the channels of a head, are a linear function of the position, the channel filters of
    the pooled image through a bottleneck. Each has its mean over the K² taps taken off and is scaled to unit
    deviation times a learned factor (filter normalisation), which a learned shift follows.

    (B, H, W, C) → (B, H, W, C); arguments as of NeighbourhoodAttention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        *,
        kernel_size: int = 7,
        dilation: int = 1,
        qkv_bias: bool = True,
        bottleneck: float = 0.25,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide the channels: {dim} channels, {num_heads} heads")
        self.num_heads, self.kernel_size, self.dilation = num_heads, kernel_size, dilation
        taps = kernel_size**2
        self.pre_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.spatial = nn.Linear(dim, num_heads * taps)
        hidden = max(1, int(dim * bottleneck))
        self.channel = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim * taps))
        self.deviation = nn.ParameterList([torch.full((count,), 1 / kernel_size) for count in (num_heads, dim)])
        self.shift = nn.ParameterList([torch.zeros(num_heads), torch.zeros(dim)])
        self.post_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        weights = self._normalised(apply_linear(self.spatial, x).unflatten(-1, (self.num_heads, -1)), 0).flatten(-2)
        filters = self._normalised(self.channel(x.mean((1, 2))).unflatten(-1, (x.shape[-1], -1)), 1)
        of = dict(num_heads=self.num_heads, kernel_size=self.kernel_size, dilation=self.dilation)
        out = neighbour_sums(weights, apply_linear(self.pre_proj, x), filters, **of)
        return self.proj_drop(apply_linear(self.post_proj, out))

    def _normalised(self, filters: Tensor, which: int) -> Tensor:
        """(…, N, K²), over the taps."""
        filters = filters.float() if filters.dtype != torch.float64 else filters
        deviation, mean = torch.std_mean(filters, -1, correction=0, keepdim=True)
        filters = (filters - mean) / (deviation + 1e-5)
        return filters * self.deviation[which][:, None] + self.shift[which][:, None]


TAKEN = {  # of the arguments of all operators, each one's own
    "elsa": ("lam", "gamma", "group_width", "qk_scale", "attn_drop"),
    "hadamard": ("lam", "gamma", "group_width", "qk_scale", "attn_drop"),
    "neighbourhood": ("lam", "gamma", "position_bias", "attn_drop"),
    "parametric": ("lam", "gamma", "position_bias", "attn_drop"),
    "dynamic": (),
    "depthwise": (),
}


def local_block(
    kind: str, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float, proj_drop: float, **arguments: Any
) -> LocalBlock:
    """A block around the operator of a name in TAKEN; arguments of other operators are left out."""
    given = {name: arguments[name] for name in (*TAKEN[kind], "kernel_size", "qkv_bias")}
    block: dict[str, float] = dict(mlp_ratio=mlp_ratio, drop_path=drop_path, proj_drop=proj_drop)
    if kind in ("elsa", "hadamard"):
        return ELSABlock(dim, num_heads, **block, **given)
    attn: nn.Module
    if kind == "depthwise":
        attn = Depthwise(dim, proj_drop=proj_drop, **given)
    elif kind == "dynamic":
        attn = DynamicFilters(dim, num_heads, proj_drop=proj_drop, **given)
    else:
        generation = "dot" if kind == "neighbourhood" else kind
        attn = NeighbourhoodAttention(dim, num_heads, generation=generation, proj_drop=proj_drop, **given)
    return LocalBlock(attn, dim, **block)
