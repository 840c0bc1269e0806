"""The sizes at which the operator is measured: those of the released networks, and some for a question of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes of one call, without the batch."""

    name: str
    height: int
    width: int
    channels: int
    heads: int
    kernel: int = 7
    mul: bool = False
    add: bool = True

    def multiply_adds(self, batch: int) -> int:
        """Of one aggregation."""
        return batch * self.height * self.width * self.channels * self.kernel**2

    def traffic(self, batch: int, backward: bool) -> int:
        """Numbers that must move at least, every input read once and every output written once; ghosts are small."""
        positions = batch * self.height * self.width
        values, weights = positions * self.channels, positions * self.heads * self.kernel**2
        forward = 2 * values + weights
        return forward + (3 * values + 2 * weights) * backward


def swin(variant: str, dim: int, heads: int, height: int, width: int) -> list[Shape]:
    """The first three stages, at strides 4, 8 and 16."""
    maps = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16)]
    return [Shape(f"{variant} {s + 1}", *maps[s], dim << s, heads << s) for s in range(3)]


GROUPS = {
    "swin_t_224": swin("Swin-T/S", 96, 3, 224, 224),
    "swin_b_224": swin("Swin-B", 128, 4, 224, 224),
    "swin_t_800": swin("Swin-T/S@800", 96, 3, 800, 1333),
    "swin_b_800": swin("Swin-B@800", 128, 4, 800, 1333),
    "volo_224": [
        Shape(f"VOLO-{name}", 28, 28, dim, dim // 32, 5, True, True)
        for name, dim in (("D1", 192), ("D2/D3", 256), ("D4/D5", 384))
    ],
    "plain": [Shape("no ghost", 56, 56, 96, 3, add=False)],
    "scaling": [Shape(f"{size}²", size, size, 96, 3) for size in (56, 112, 224, 448)],
}
DEFAULT_GROUPS = ("swin_t_224", "volo_224", "plain")
