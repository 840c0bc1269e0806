"""ELSA: Hadamard attention, ghost head and local aggregation (arXiv 2112.12786, section 3, figure 3)."""

from __future__ import annotations

import math

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from elsa.kernels import elsa_attention, hadamard_convolution, linear

from .mlp import Mlp, add_mlp


class GhostHead(nn.Module):
    """The static maps of an attention over K×K neighbours, under their published name ``ghost_head``."""

    ghost_head: nn.Parameter | None

    def make_ghosts(self, dim_v: int, kernel_size: int, lam: int, gamma: float) -> None:
        """Parameters for λ and γ; see ELSA.

        Raises:
            ValueError: λ is not a non-negative integer.
        """
        if isinstance(lam, bool) or lam != int(lam) or lam < 0:
            raise ValueError(f"lam (λ) must be a non-negative integer, got {lam}: a power of a negative value is NaN")
        self.lam, self.gamma = int(lam), gamma
        ghosts = bool(lam) + bool(gamma)
        leading = (2, 1) if ghosts == 2 else (1,)
        maps = torch.empty(*leading, dim_v, kernel_size, kernel_size)
        self.register_parameter("ghost_head", nn.Parameter(maps) if ghosts else None)

    def reset_ghosts(self) -> None:
        """Published initialisation."""
        mul, add = self._ghosts()
        if mul is not None:
            nn.init.normal_(mul)
        if add is not None:
            nn.init.trunc_normal_(add, std=0.02)

    def _ghosts(self) -> tuple[Tensor | None, Tensor | None]:
        """The parameters (mul, add), each (…, C_v, K, K) or None."""
        if self.ghost_head is not None and self.lam and self.gamma:
            return self.ghost_head[0], self.ghost_head[1]
        return (self.ghost_head, None) if self.lam else (None, self.ghost_head)

    def ghost_maps(self) -> tuple[Tensor | None, Tensor | None]:
        """What multiplies the attention, and what is added: (ghost_mul^λ, γ · ghost_add), each (C_v, K²) or None."""
        mul, add = self._ghosts()
        if mul is not None:
            mul = mul.reshape(mul.shape[-3], -1) ** self.lam
        if add is not None:
            add = add.reshape(add.shape[-3], -1) * self.gamma
        return mul, add


class ELSA(GhostHead):
    """Enhanced local self-attention, a drop-in for local self-attention: (B, H, W, C) → (B, H, W, C).

    Queries and keys meet in a Hadamard product, a K×K convolution and a 1×1 convolution turn it into K² attention
    logits per head (Hadamard attention), and per-channel maps make every head many (ghost head). Parameter names
    and shapes are the published ones.

    Args:
        dim: C, channels of the input and the output.
        num_heads: G, heads of the attention.
        dim_qk: C_q, channels of queries and keys; default ``dim // 3 * 2``. Rounded up to a multiple of group_width.
        dim_v: C_v, channels of the values; default ``dim``.
        kernel_size: K, odd side of the neighbourhood.
        dilation: distance between taps, in positions.
        qkv_bias: whether the projection to q, k, v has a bias.
        qk_scale: factor on q · k; default (C_v / G)^−½. Every released model uses 1.
        group_width: channels per group of the K×K convolution.
        groups: groups of the 1×1 convolution that gives the logits.
        lam: λ, the exponent of the multiplicative ghost head, an integer; 0 leaves it out.
        gamma: γ, the factor of the additive ghost head; 0 leaves it out.
        attn_drop: dropout between softmax and ghost head.
        proj_drop: dropout after the last projection.

    Raises:
        ValueError: a size that does not divide, an even kernel, or a λ that is not a non-negative integer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dim_qk: int | None = None,
        dim_v: int | None = None,
        kernel_size: int = 7,
        dilation: int = 1,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        group_width: int = 8,
        groups: int = 1,
        lam: int = 0,
        gamma: float = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        for name, number in (("num_heads", num_heads), ("group_width", group_width), ("groups", groups)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        dim_v = dim_v or dim
        dim_qk = math.ceil((dim_qk or dim // 3 * 2) / group_width) * group_width
        logits = num_heads * kernel_size**2
        if dim_v % num_heads:
            raise ValueError(f"num_heads must divide dim_v: dim_v {dim_v}, num_heads {num_heads}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if dilation < 1:
            raise ValueError(f"dilation must be at least 1, got {dilation}")
        if not 0 <= attn_drop < 1:
            raise ValueError(f"attn_drop must be at least 0 and below 1, got {attn_drop}")
        if dim_qk % groups or logits % groups:
            raise ValueError(f"groups must divide dim_qk {dim_qk} and num_heads · K² = {logits}, got {groups}")

        self.dim_qk, self.dim_v, self.num_heads = dim_qk, dim_v, num_heads
        self.kernel_size, self.dilation = kernel_size, dilation
        self.scale = (dim_v / num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.attn_drop = attn_drop

        self.pre_proj = nn.Conv2d(dim, 2 * dim_qk + dim_v, 1, bias=qkv_bias)
        reach = dilation * (kernel_size // 2)
        self.attn = nn.Sequential(
            nn.Conv2d(dim_qk, dim_qk, kernel_size, padding=reach, dilation=dilation, groups=dim_qk // group_width),
            nn.GELU(),
            nn.Conv2d(dim_qk, logits, 1, groups=groups),
        )
        self.make_ghosts(dim_v, kernel_size, lam, gamma)
        self.post_proj = nn.Linear(dim_v, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Published initialisation; convolutions keep PyTorch's default."""
        nn.init.trunc_normal_(self.post_proj.weight, std=0.02)
        nn.init.zeros_(self.post_proj.bias)
        self.reset_ghosts()

    def hadamard_attention(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, keys and values, (B, H, W, 2·C_q + C_v) → attention logits (B, H, W, G·K²) and the values."""
        mix, _, expand = self.attn  # GELU belongs to the convolution
        assert isinstance(mix, nn.Conv2d) and isinstance(expand, nn.Conv2d)
        local, value = hadamard_convolution(packed, mix.weight, mix.bias, scale=self.scale, dilation=self.dilation)
        if expand.groups > 1:
            return expand(local.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), value
        return linear(local, expand.weight.flatten(1), expand.bias), value

    def forward(self, x: Tensor) -> Tensor:
        logits, value = self.hadamard_attention(linear(x, self.pre_proj.weight.flatten(1), self.pre_proj.bias))
        mul, add = self.ghost_maps()
        out = elsa_attention(
            value,
            logits,
            mul,
            add,
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            attn_drop=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(linear(out, self.post_proj.weight, self.post_proj.bias))

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, kernel_size={self.kernel_size}, dilation={self.dilation}, "
            f"lam={self.lam}, gamma={self.gamma}, scale={self.scale:g}"
        )


class LocalBlock(nn.Module):
    """Pre-norm transformer block around an operator of maps: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Args:
        attn: (B, H, W, C) → (B, H, W, C).
        dim: C.
        mlp_ratio: hidden width of the MLP over ``dim``.
        drop_path: stochastic-depth probability of both branches.
        proj_drop: dropout after the projections of the MLP.
    """

    def __init__(
        self, attn: nn.Module, dim: int, *, mlp_ratio: float, drop_path: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return add_mlp(x, self.norm2, self.mlp, self.drop_path)


class ELSABlock(LocalBlock):
    """A block with ELSA.

    Args:
        dim, num_heads: as in ELSA.
        mlp_ratio, drop_path: as in LocalBlock.
        proj_drop: dropout after the projections of ELSA and of the MLP.
        **elsa: every other argument of ELSA, checked there.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        **elsa,
    ) -> None:
        attn = ELSA(dim, num_heads, proj_drop=proj_drop, **elsa)
        super().__init__(attn, dim, mlp_ratio=mlp_ratio, drop_path=drop_path, proj_drop=proj_drop)
