"""Static facts about the CUDA kernels of the Hadamard convolution, as cuda_report.py has them for the other operator.

python tests/kernels/hadamard_cuda_report.py          # the Markdown tables of docs/cuda.md
python tests/kernels/hadamard_cuda_report.py --check  # also exit 1 on what cuda_report.py refuses, and without HMMA
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from cuda_report import DEVICES, TYPE_NAMES, UNITS, Kernel, all_kernels, occupancy, options, problems, run_shapes

THREADS = 256
ROLES = {"convolve_kernel": "forward, dpacked", "weight_gradient_kernel": "dweight, dbias"}
# Registers beyond which a block of 256 threads has no second one beside it.
BUDGET = 128


def print_table(kernels: list[Kernel], shared: dict[tuple, int]) -> None:
    print("| kernel | type | K | width | registers | spills | in the code | shared KiB | blocks | occupancy |")
    print("|---" * 10 + "|")
    rows: dict[tuple, list[Kernel]] = {}
    for kernel in kernels:
        if kernel.specialised:
            rows.setdefault((kernel.name, list(UNITS).index(kernel.type), *kernel.arguments[1:]), []).append(kernel)
    for (name, _, kernel_size, width), group in sorted(rows.items()):
        group.sort(key=lambda kernel: list(DEVICES).index(kernel.arch))
        one = group[0]
        dynamic = shared[one.type, kernel_size, width, name]
        blocks = [occupancy(DEVICES[x.arch], x.registers, THREADS, dynamic + x.static_shared) for x in group]
        opcode = "HMMA" if one.count("HMMA") else "FFMA"
        cells = [
            ROLES[name], TYPE_NAMES[one.type], kernel_size, width, " / ".join(str(x.registers) for x in group),
            sum(x.spills for x in group), f"{one.count(opcode)} {opcode}", f"{dynamic / 1024:.1f}",
            " / ".join(map(str, blocks)),
            " / ".join(f"{n * THREADS / 32 / DEVICES[x.arch].warps:.0%}" for n, x in zip(blocks, group, strict=True)),
        ]  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")
    generic = [kernel for kernel in kernels if not kernel.specialised]
    registers = [kernel.registers for kernel in generic]
    print(f"\nGeneric kernels: {min(registers)} to {max(registers)} registers, at most", end=" ")
    print(f"{max(x.spills for x in generic)} bytes spilled.")


def print_bytes() -> None:
    """What must move at least at Swin-T's first stage in half precision, in MB."""
    positions, packed, channels = 128 * 56 * 56, 224, 64
    one, rest = positions * channels * 2 / 1e6, positions * (packed - 2 * channels) * 2 / 1e6
    print("\n| pass | reads and writes | MB |\n|---|---|---|")
    print(f"| forward | query, key; local | {3 * one:.0f} |")
    print(f"| forward, for training | the same and before | {4 * one:.0f} |")
    print(f"| dpacked | grad_local, before, query, key; their gradients | {6 * one:.0f} |")
    print(f"| dweight, dbias | grad_local, before, query, key | {4 * one:.0f} |")
    print(f"| the rest's gradient | copied | {2 * rest:.0f} |")


def more_problems(kernels: list[Kernel]) -> list[str]:
    found = []
    for kernel in kernels:
        if not kernel.specialised:
            continue
        name = f"{kernel.arch} {kernel.name}<{', '.join(kernel.arguments)}>"
        if kernel.registers > BUDGET:
            found.append(f"{name}: {kernel.registers} registers, more than {BUDGET}")
        if (kernel.type == "float") == bool(kernel.count("HMMA")):
            found.append(f"{name}: {kernel.count('HMMA')} instructions of the tensor cores")
    return found


def main() -> int:
    arguments = options(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = {}
        for kind, kernel_size, width, kernel_name, size in map(str.split, run_shapes("hadamard_cuda_shapes", folder)):
            shared[kind, kernel_size, width, f"{kernel_name}_kernel"] = int(size)
        kernels = all_kernels("hadamard", arguments, folder)
    print_table(kernels, shared)
    print_bytes()
    found = [*problems(kernels, expected=12), *more_problems(kernels)]  # three kernel sizes × two widths × two kernels
    if arguments.check:
        print("\n" + ("\n".join(found) or f"check: {len(kernels)} kernels, nothing to report"))
    return int(arguments.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
