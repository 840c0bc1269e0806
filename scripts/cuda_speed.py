"""Times the operator on a GPU against its memory traffic: ``python scripts/cuda_speed.py``.

Per shape, type and pass: milliseconds, and the bandwidth that the least possible traffic (every input read once, every
output written once) would have needed in that time; compare it with the bandwidth of a copy in the same run.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

import elsa.kernels  # noqa: F401  (loads the compiled operator)

# name, side of the map, channels, heads, kernel size, multiplicative ghost as well as the additive one
SHAPES = (
    ("Swin-T 1", 56, 96, 3, 7, False),
    ("Swin-T 2", 28, 192, 6, 7, False),
    ("Swin-T 3", 14, 384, 12, 7, False),
    ("VOLO D1 1", 28, 192, 6, 5, True),
)


def seconds(call, device: torch.device, repetitions: int) -> float:
    """The shortest of several means; a GPU works asynchronously, so it is waited for before each look at the clock."""

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    call()
    means = []
    for _ in range(5):
        start = wait()
        for _ in range(repetitions):
            call()
        means.append((wait() - start) / repetitions)
    return min(means)


def rows(device: torch.device, dtype: torch.dtype, batch: int, repetitions: int):
    for name, side, channels, heads, kernel, both in SHAPES:
        value, grad = (torch.randn(batch, side, side, channels, device=device).to(dtype) for _ in range(2))
        logits = torch.randn(batch, side, side, heads * kernel**2, device=device).to(dtype)
        mul, add = (torch.randn(channels, kernel**2, device=device) for _ in range(2))
        inputs = (value, logits, mul if both else None, add, heads, kernel, 1)
        tensors, weights = value.nbytes, logits.nbytes
        passes = {
            "forward": (lambda x=inputs: torch.ops.elsa.attention_forward(*x), 2 * tensors + weights),
            "backward": (lambda g=grad, x=inputs: torch.ops.elsa.attention_backward(g, *x), 3 * tensors + 2 * weights),
        }
        for what, (call, traffic) in passes.items():
            took = seconds(call, device, repetitions)
            yield f"{name:10} {str(dtype)[6:]:9} {what:9} {took * 1e3:9.3f} ms {traffic / took / 1e9:9.1f} GB/s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cpu tries the script out")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=20)
    arguments = parser.parse_args()
    device = arguments.device
    if device.type == "cuda" and not torch.cuda.is_available():
        print("cuda_speed: torch sees no CUDA GPU", file=sys.stderr)
        return 1
    source = torch.empty(2**28 if device.type == "cuda" else 2**22, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    took = seconds(lambda: target.copy_(source), device, arguments.repetitions)
    print(f"copy of {source.nbytes >> 20} MiB: {2 * source.nbytes / took / 1e9:.1f} GB/s read and written")
    for dtype in (torch.float32, torch.bfloat16):
        for row in rows(device, dtype, arguments.batch, arguments.repetitions):
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
