"""The parts of Swin Transformer (arXiv 2103.14030) that ELSA-Swin keeps; maps are (B, H, W, C) throughout."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, resize_rel_pos_bias_table, to_2tuple
from torch import Tensor, nn

from elsa.kernels import is_portable

from .attend import attend
from .mlp import Mlp, add_mlp, apply_linear


def lacking(size: int, multiple: int) -> int:
    """What is to be added for the next multiple: ``-size % multiple``, in a form in which graphs for maps of any size
    stay simple: what is added cancels, and a quotient has no remainder."""
    return (size + multiple - 1) // multiple * multiple - size


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pads a (B, H, W, C) map at the right and at the bottom to multiples of ``multiple``."""
    height, width = x.shape[1:3]
    return F.pad(x, (0, 0, 0, lacking(width, multiple), 0, lacking(height, multiple)))


def crop_map(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left of a (B, H, W, C) map. In graphs for maps of any size it is gathered: slices would have to prove
    that the map is large enough."""
    if not is_of_any_size(height, width):
        return x[:, :height, :width]
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    return x.index_select(1, rows).index_select(2, columns)


def halve_by_maximum(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, ⌈H/2⌉, ⌈W/2⌉), the largest of each square."""
    height, width = x.shape[2:]
    if not is_of_any_size(height, width):
        return F.max_pool2d(x, 2, ceil_mode=True)
    return F.max_pool2d(F.pad(x, (0, lacking(width, 2), 0, lacking(height, 2)), value=-math.inf), 2)


def is_of_any_size(*sizes: int) -> bool:
    """Whether a portable graph is made in which one of these sizes is open."""
    return is_portable() and any(isinstance(size, torch.SymInt) for size in sizes)


def resize_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) → (B, C, *size), bicubic; unchanged where the size is right."""
    if not is_of_any_size(*size) and x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bicubic", align_corners=False)


def resize_position_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Absolute position embedding (1, H·W, C) of an old map size → (1, H'·W', C) of a new one, bicubic."""
    return resize_map(table.transpose(1, 2).unflatten(2, old), new).flatten(2).transpose(1, 2)


def resize_bias_table(table: Tensor, window_size: int) -> Tensor:
    """The relative position bias (heads, (2w−1)²) of windows of one size → of those of ``window_size``."""
    size = ((2 * window_size - 1) ** 2, len(table))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of the way in which timm indexes
        return resize_rel_pos_bias_table(table.T, (window_size, window_size), size).T.contiguous()


def init_linear_layers(module: nn.Module) -> None:
    """Initialises every linear layer in ``module``: truncated normal σ .02, zero bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def select_stages(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """The stages that timm's ``indices`` names: the last n (int), those listed (negative from the end), all (None)."""
    if isinstance(indices, int):
        indices = range(-indices, 0)
    wanted = [index + count * (index < 0) for index in (range(count) if indices is None else indices)]
    if not wanted or any(index not in range(count) for index in wanted):
        raise ValueError(f"indices must name some of the {count} stages, got {indices}")
    return wanted


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """(B, C, H, W) so in memory that a convolution writes what LayerNorm reads; unchanged on other devices."""
    return x.contiguous(memory_format=torch.channels_last) if x.is_cpu else x


class PatchEmbed(nn.Module):
    """Images (B, C_in, H, W) of any size → (B, ⌈H/p⌉, ⌈W/p⌉, C): a p×p convolution of stride p, then LayerNorm.

    Attributes:
        img_size, grid_size: the nominal input and map size, (height, width); forward takes any other.
    """

    def __init__(self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.set_input_size(img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        self.img_size = to_2tuple(img_size)
        if min(self.img_size) < 1:
            raise ValueError(f"img_size must be positive, got {img_size}")
        self.grid_size = tuple(-(-size // self.patch_size[0]) for size in self.img_size)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, lacking(width, self.patch_size[1]), 0, lacking(height, self.patch_size[0])))
        return self.norm(self.proj(channels_last_on_cpu(x)).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halves the map and doubles the channels: (B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        squares = pad_to_multiple(x, 2).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        squares = squares.permute(0, 1, 3, 4, 2, 5).flatten(3)  # the published order: (row, column) 00, 10, 01, 11
        return apply_linear(self.reduction, self.norm(squares))


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative position bias: (N, w², C) → (N, w², C).

    One linear layer packs v, q, k in this order; the bias table ``rb`` (heads, (2w−1)²) is indexed by key − query.
    ``rb.flip(1).T`` is the table as Swin Transformer and timm store it. Without ``position_bias`` there is no table.
    """

    rb: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        *,
        position_bias: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide the channels: {dim} channels, {num_heads} heads")
        if window_size < 1:
            raise ValueError(f"window_size must be positive, got {window_size}")
        self.num_heads, self.window_size, self.attn_drop = num_heads, window_size, attn_drop
        self.pre_proj = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        table = torch.empty(num_heads, (2 * window_size - 1) ** 2)
        self.register_parameter("rb", nn.Parameter(table) if position_bias else None)
        if position_bias:
            self.register_buffer("relative_id", self._relative_id(window_size))
        self.post_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if self.rb is not None:
            nn.init.trunc_normal_(self.rb, std=0.02)

    @staticmethod
    def _relative_id(window: int) -> Tensor:
        """Index into ``rb`` for every (query, key) pair, flat: (w⁴,)."""
        position = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        row, column = (position[None] - position[:, None] + window - 1).unbind(-1)
        return (row * (2 * window - 1) + column).flatten()

    def set_window_size(self, window_size: int) -> None:
        self.window_size = window_size
        if self.rb is None:
            return
        self.rb = nn.Parameter(resize_bias_table(self.rb, window_size), self.rb.requires_grad)
        self.relative_id = self._relative_id(window_size).to(self.rb.device)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask``: (windows per map, w², w²), added to the logits; N counts maps first, then their windows."""
        number, tokens, dim = x.shape
        packed = apply_linear(self.pre_proj, x).reshape(number, tokens, 3, self.num_heads, dim // self.num_heads)
        value, query, key = packed.permute(2, 0, 3, 1, 4).unbind(0)
        bias = None if self.rb is None else self.rb[:, self.relative_id].reshape(1, self.num_heads, tokens, tokens)
        if mask is not None:
            mask = mask[:, None] if bias is None else bias + mask[:, None]
            bias = mask.repeat(number // mask.shape[0], 1, 1, 1)
        drop = self.attn_drop if self.training else 0.0
        out = attend(query, key, value, None if bias is None else bias.to(query.dtype), drop)
        out = apply_linear(self.post_proj, out.transpose(1, 2).reshape(number, tokens, dim))
        return self.proj_drop(out)


def shifted_window_mask(height: int, width: int, window: int, shift: int | Tensor, device: torch.device) -> Tensor:
    """−100 between positions that the cyclic shift brought into one window: (windows, w², w²), for a padded map.

    Of a shift of 0, which only a tensor may hold, it is 0 everywhere.
    """

    def regions(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return (position >= size - window).long() + (position >= size - shift).long()

    region = regions(height)[:, None] * 3 + regions(width)[None]
    if is_of_any_size(height, width):
        region = region.flatten()[places_of_windows(height, width, window, 0, device)].unflatten(0, (-1, window**2))
    else:
        region = partition_windows(region[None, ..., None], window).squeeze(-1)
    return (region[:, None] != region[:, :, None]) * -100.0


def partition_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) → (B · windows, w², C); H and W are multiples of w."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def merge_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of ``partition_windows``."""
    x = windows.reshape(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def places_of_windows(height: int, width: int, window: int, shift: int | Tensor, device: torch.device) -> Tensor:
    """Of each position of each window, its place in a map that is shifted up and to the left: (H · W,)."""
    rows, columns = (_wrapped(torch.arange(size, device=device) + shift, size) for size in (height, width))
    rows, columns = rows.unflatten(0, (-1, 1, window, 1)), columns.unflatten(0, (1, -1, 1, window))
    return (rows * width + columns).flatten()


def places_in_windows(
    sizes: tuple[int, int], padded: tuple[int, int], window: int, shift: int | Tensor, device: torch.device
) -> Tensor:
    """Of each position of a map (H, W), its place among those of ``places_of_windows`` of the padded map: (H · W,)."""
    rows, columns = (
        _wrapped(torch.arange(size, device=device) - shift, whole) for size, whole in zip(sizes, padded, strict=True)
    )
    rows, columns = rows[:, None], columns[None]
    windows = rows // window * (padded[1] // window) + columns // window
    return (windows * window**2 + rows % window * window + columns % window).flatten()


def _wrapped(position: Tensor, size: int) -> Tensor:
    """``position % size`` from −size to 2 · size: ONNX has no remainder of a size that is open."""
    return position + ((position < 0).long() - (position >= size).long()) * size


class WindowBlock(nn.Module):
    """Swin Transformer block: (shifted-)window attention and an MLP, both pre-norm with stochastic depth.

    Args:
        shifted: whether windows are shifted cyclically by half their size.
        shift_small_maps: whether to shift where the smaller side of the map is no larger than the window. The
            published classification models do not, the published detection and segmentation backbones do.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int,
        shifted: bool,
        shift_small_maps: bool,
        mlp_ratio: float,
        qkv_bias: bool = True,
        position_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size, self.shifted, self.shift_small_maps = window_size, shifted, shift_small_maps
        self.norm1 = nn.LayerNorm(dim)
        dropped: dict[str, float] = dict(attn_drop=attn_drop, proj_drop=proj_drop)
        self.attn = WindowAttention(
            dim, num_heads, window_size, qkv_bias=qkv_bias, position_bias=position_bias, **dropped
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path = DropPath(drop_path)

    @torch.no_grad()
    def set_window_size(self, window_size: int) -> None:
        """Another window size; the bias table is resized with it."""
        if window_size < 1:
            raise ValueError(f"window_size must be positive, got {window_size}")
        self.window_size = window_size
        self.attn.set_window_size(window_size)

    def window_attention(self, x: Tensor) -> Tensor:
        """Pad, shift, attend within windows, undo: (B, H, W, C) → (B, H, W, C)."""
        height, width = x.shape[1:3]
        shift = self.window_size // 2 if self.shifted else 0
        x = pad_to_multiple(x, self.window_size)
        if is_of_any_size(height, width):
            return self._gathered(x, (height, width), shift)
        if not self.shift_small_maps and min(height, width) <= self.window_size:
            shift = 0
        padded_height, padded_width = x.shape[1:3]
        mask = None
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            mask = shifted_window_mask(padded_height, padded_width, self.window_size, shift, x.device)
        x = self.attn(partition_windows(x, self.window_size), mask)
        x = merge_windows(x, self.window_size, padded_height, padded_width)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]

    def _gathered(self, x: Tensor, sizes: tuple[int, int], shift: int | Tensor) -> Tensor:
        """The same of a padded map, for graphs that hold maps of any size: for views and slices they would have to know
        whether there is a single window, and that no map is larger than it is padded. What depends on the size is a
        tensor: whether windows are shifted."""
        padded, window = (x.shape[1], x.shape[2]), self.window_size
        if not self.shift_small_maps and self.shifted:
            sides = torch.stack([torch.arange(side).amax(0) + 1 for side in sizes])
            shift = (sides.amin(0) > window).long() * shift
        there = places_of_windows(*padded, window, shift, x.device)
        back = places_in_windows(sizes, padded, window, shift, x.device)
        windows = x.flatten(1, 2).index_select(1, there).unflatten(1, (-1, window**2)).flatten(0, 1)
        mask = shifted_window_mask(*padded, window, shift, x.device) if self.shifted else None
        out = self.attn(windows, mask).unflatten(0, (x.shape[0], -1)).flatten(1, 2)
        return out.index_select(1, back).unflatten(1, sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.window_attention(self.norm1(x)))
        return add_mlp(x, self.norm2, self.mlp, self.drop_path)
