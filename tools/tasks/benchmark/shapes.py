"""The sizes at which the operators are measured: of the released networks, and some for a question of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes of one call of the aggregation, without the batch."""

    name: str
    height: int
    width: int
    channels: int
    heads: int
    kernel: int = 7
    mul: bool = False
    add: bool = True

    @property
    def gradients(self) -> int:
        """Sums of a forward pass's size in the backward pass."""
        return 2 + self.mul + self.add

    def multiply_adds(self, batch: int) -> int:
        """Of a forward pass."""
        return batch * self.height * self.width * self.channels * self.kernel**2

    def traffic(self, batch: int) -> tuple[int, int]:
        """Numbers that must move at least, forward and backward, every input read once and every output written once;
        ghosts are small."""
        positions = batch * self.height * self.width
        values, weights = positions * self.channels, positions * self.heads * self.kernel**2
        return 2 * values + weights, 3 * values + 2 * weights


@dataclass(frozen=True)
class HadamardShape:
    """The sizes of one call of the Hadamard convolution: C_q channels, and ``rest`` channels of values beside them."""

    name: str
    height: int
    width: int
    channels: int
    group_width: int
    rest: int
    kernel: int = 7

    gradients = 2

    def multiply_adds(self, batch: int) -> int:
        """Of a forward pass."""
        return batch * self.height * self.width * self.channels * self.group_width * self.kernel**2

    def traffic(self, batch: int) -> tuple[int, int]:
        """As Shape's; the gradient of the values is copied into the packed one."""
        positions = batch * self.height * self.width
        return positions * 3 * self.channels, positions * (6 * self.channels + 2 * self.rest)


def swin(variant: str, dim: int, heads: int, height: int, width: int) -> list[Shape]:
    """The first three stages, at strides 4, 8 and 16."""
    maps = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16)]
    return [Shape(f"{variant} {s + 1}", *maps[s], dim << s, heads << s) for s in range(3)]


def hadamard(variant: str, dim: int, group_width: int) -> list[HadamardShape]:
    """The first three stages at 224 pixels."""
    shapes = []
    for stage, side in enumerate((56, 28, 14)):
        values = dim << stage
        queries = math.ceil(values // 3 * 2 / group_width) * group_width
        shapes.append(HadamardShape(f"{variant} {stage + 1}", side, side, queries, group_width, values))
    return shapes


GROUPS: dict[str, list[Shape] | list[HadamardShape]] = {
    "swin_t_224": swin("Swin-T/S", 96, 3, 224, 224),
    "swin_b_224": swin("Swin-B", 128, 4, 224, 224),
    "swin_t_800": swin("Swin-T/S@800", 96, 3, 800, 1333),
    "swin_b_800": swin("Swin-B@800", 128, 4, 800, 1333),
    "volo_224": [
        Shape(f"VOLO-{name}", 28, 28, dim, dim // 32, 5, True, True)
        for name, dim in (("D1", 192), ("D2/D3", 256), ("D4/D5", 384))
    ],
    "plain": [Shape("no ghost", 56, 56, 96, 3, add=False)],
    "hadamard_t_224": hadamard("H. Swin-T", 96, 4),
    "hadamard_s_224": hadamard("H. Swin-S", 96, 8),
    "hadamard_b_224": hadamard("H. Swin-B", 128, 8),
    "hadamard_volo_224": [HadamardShape("H. VOLO-D1", 28, 28, 128, 8, 192, 5)],
    "scaling": [Shape(f"{size}²", size, size, 96, 3) for size in (56, 112, 224, 448)],
}
DEFAULT_GROUPS = ("swin_t_224", "volo_224", "plain", "hadamard_t_224", "hadamard_volo_224")
