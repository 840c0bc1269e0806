"""VOLO's transformer stages (arXiv 2106.13112): timm's modules, whose linear layers and MLPs are called as ours are."""

from __future__ import annotations

import timm.layers
from timm.models import volo
from torch import Tensor, nn

from .attend import attend
from .mlp import Mlp, add_mlp, apply_linear


class Attention(volo.Attention):
    """Multi-head self-attention over all positions of a map: (B, H, W, C) → (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        packed = apply_linear(self.qkv, x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        drop = self.attn_drop.p if self.training else 0.0
        out = attend(query, key, value, drop=drop)
        return self.proj_drop(apply_linear(self.proj, out.transpose(1, 2).reshape(x.shape)))


class Transformer(volo.Transformer):
    """Self-attention and an MLP, both pre-norm with stochastic depth: (B, H, W, C) → (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return add_mlp(x, self.norm2, self.mlp, self.drop_path2)


class ClassAttention(volo.ClassAttention):
    """The class token attends to all tokens, its own included: (B, N, C) → (B, 1, C)."""

    def forward(self, x: Tensor) -> Tensor:
        packed = apply_linear(self.kv, x).unflatten(-1, (2, self.num_heads, self.head_dim))
        key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        query = apply_linear(self.q, x[:, :1]).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        weights = self.attn_drop((query * self.scale @ key.transpose(-2, -1)).softmax(-1))
        out = (weights @ value).transpose(1, 2).flatten(2)
        return self.proj_drop(apply_linear(self.proj, out))


OURS: dict[type[nn.Module], type[nn.Module]] = {
    volo.Attention: Attention,
    volo.ClassAttention: ClassAttention,
    volo.Transformer: Transformer,
    timm.layers.Mlp: Mlp,
}


def use_our_layers(network: nn.Module) -> None:
    """Has the modules that timm built computed by ours, in place; names and weights stay."""
    for module in network.modules():
        module.__class__ = OURS.get(type(module), type(module))
