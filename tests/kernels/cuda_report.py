"""Static facts about the CUDA kernels, no GPU needed: registers, spills, shared memory, occupancy, bytes moved.

    python tests/kernels/cuda_report.py          # the Markdown table of docs/cuda.md
    python tests/kernels/cuda_report.py --check  # also exit 1 on spills, local memory, fp64 in float kernels
    python tests/kernels/cuda_report.py --check --library PATH  # of a built library, without compiling anything again

Compiles every kernel for each architecture. Needs nvcc, a C++ compiler, and cuobjdump and nvdisasm (which come with
triton, hence with torch).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "kernels" / "csrc" / "cuda"
UNITS = {"float": "f32", "__half": "f16", "__nv_bfloat16": "bf16", "double": "f64"}
TYPE_NAMES = {"float": "fp32", "__half": "fp16", "__nv_bfloat16": "bf16", "double": "fp64"}
BYTES = {"float": 4, "__half": 2, "__nv_bfloat16": 2, "double": 8}
GHOSTS = ("none", "add", "both")


@dataclass(frozen=True)
class Device:
    """What limits the blocks of a multiprocessor (CUDA programming guide, technical specifications)."""

    name: str
    shared: int
    shared_per_block: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32


DEVICES = {
    "sm_80": Device("A100", 164 << 10, 163 << 10),
    "sm_90": Device("H100", 228 << 10, 227 << 10),
    "sm_100": Device("B200", 228 << 10, 227 << 10),
}


@dataclass
class Kernel:
    """One compiled function."""

    arch: str
    name: str
    arguments: list[str]
    registers: int = 0
    local: int = 0
    spills: int = 0
    static_shared: int = 0
    mix: dict[str, int] = field(default_factory=dict)

    @property
    def type(self) -> str:
        return self.arguments[0]

    @property
    def specialised(self) -> bool:
        return self.name in ("aggregate_kernel", "gradient_kernel", "convolve_kernel", "weight_gradient_kernel")

    @property
    def ghosts(self) -> int:
        """0 none, 1 add, 2 mul and add. The gradient kernel without mul serves none and add; its larger case counts."""
        flags = [argument == "true" for argument in self.arguments[2:]]
        return 2 if flags[0] else int(flags[1]) if self.name == "aggregate_kernel" else 1

    @property
    def role(self) -> str:
        if self.name == "gradient_kernel":
            return "dlogits, dghost"
        return "dvalue" if self.arguments[-1] == "true" else "forward"

    def count(self, *prefixes: str) -> int:
        return sum(n for opcode, n in self.mix.items() if opcode.split(".")[0] in prefixes)


def command(*words: object, merge: bool = False) -> str:
    result = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{words[0]} failed with status {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout + (result.stderr if merge else "")


def find_tools() -> tuple[str, str]:
    """nvcc and cuobjdump; the latter needs nvdisasm beside it on PATH."""
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc")
    if nvcc is None:
        sys.exit("nvcc was not found; set CUDA_HOME or PATH")
    if triton := find_spec("triton"):
        folder = Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "bin"
        os.environ["PATH"] += os.pathsep + str(folder)
    cuobjdump = shutil.which("cuobjdump")
    if cuobjdump is None or shutil.which("nvdisasm") is None:
        sys.exit("cuobjdump and nvdisasm were not found: install triton, or put a full CUDA toolkit on PATH")
    return nvcc, cuobjdump


def split_name(mangled: str) -> tuple[str, list[str]]:
    """'aggregate_kernel', ['float', '7', 'false', 'true', 'false']"""
    name = command("c++filt", mangled).strip()
    match = re.search(r"elsa::cuda::(?:hadamard::)?(\w+)<([^>]*)>", name)
    if match is None:
        sys.exit(f"unexpected kernel name {name}")
    return match[1], [argument.strip() for argument in match[2].split(",")]


def compile_unit(nvcc: str, cuobjdump: str, unit: str, arch: str, folder: Path) -> list[Kernel]:
    """Compile one source for one architecture and read what ptxas and the SASS say about its kernels."""
    cubin = folder / f"{unit}_{arch}.cubin"
    flags = ("-std=c++17", "-O3", "-cubin", f"-arch={arch}", "-Xptxas=-v", "-Werror", "all-warnings")
    log = command(nvcc, *flags, CUDA / f"{unit}.cu", "-o", cubin, merge=True)
    spills, static_shared = {}, {}
    for mangled, text in re.findall(r"entry function '(\w+)'.*?\n((?:.*\n)*?.*Used .*)", log):
        spills[mangled] = sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))
        static_shared[mangled] = sum(int(n) for n in re.findall(r"(\d+) bytes smem", text))
    kernels = read_resources(command(cuobjdump, "-res-usage", cubin), arch)
    for mangled, kernel in kernels.items():
        kernel.spills, kernel.static_shared = spills[mangled], static_shared[mangled]
    read_sass(command(cuobjdump, "-sass", cubin), kernels)
    return list(kernels.values())


def read_library(library: Path, prefix: str) -> list[Kernel]:
    """The same of a built library's kernels that come from PREFIX_TYPE.cu. How many bytes are spilled only ptxas tells;
    here spills show as instructions on local memory."""
    _, cuobjdump = find_tools()
    found = []
    for arch in DEVICES:
        units: dict[str, dict[str, Kernel]] = {}
        for option in ("-res-usage", "-sass"):
            for part in command(cuobjdump, "-arch", arch, option, library).split("Fatbin elf code:")[1:]:
                if unit := re.search(rf"identifier = .*/({prefix}_\w+)\.cu\n", part):
                    kernels = units.setdefault(unit[1], read_resources(part, arch))
                    read_sass(part, kernels)
        found += [kernel for kernels in units.values() for kernel in kernels.values()]
    return found


def read_resources(text: str, arch: str) -> dict[str, Kernel]:
    """What cuobjdump tells of registers and memory: {mangled name: kernel}."""
    kernels = {}
    for mangled, resources in re.findall(r"Function (\w+):\n\s+(.*)", text):
        used = {key: int(n) for key, n in re.findall(r"(\w+):(\d+)", resources)}
        kernel = Kernel(arch, *split_name(mangled), used["REG"], used["LOCAL"] + used["STACK"])
        kernel.static_shared = used["SHARED"]
        kernels[mangled] = kernel
    return kernels


def read_sass(text: str, kernels: dict[str, Kernel]) -> None:
    kernel = None
    for line in text.splitlines():
        if match := re.search(r"Function : (\w+)", line):
            kernel = kernels.get(match[1])
        elif kernel and (match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)):
            kernel.mix[match[1]] = kernel.mix.get(match[1], 0) + 1


def all_kernels(prefix: str, arguments: argparse.Namespace, folder: Path) -> list[Kernel]:
    """The kernels of PREFIX_TYPE.cu for every type and architecture, of a built library or freshly compiled."""
    if arguments.library:
        return read_library(arguments.library, prefix)
    nvcc, cuobjdump = find_tools()
    work = [(f"{prefix}_{unit}", arch) for arch in DEVICES for unit in UNITS.values()]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda pair: compile_unit(nvcc, cuobjdump, *pair, folder), work)
        return [kernel for result in results for kernel in result]


def run_shapes(name: str, folder: Path) -> list[str]:
    """What NAME.cpp prints of the kernels' own constants, line by line."""
    program = folder / "shapes"
    compiler = os.environ.get("CXX", "g++")
    flags = ("-std=gnu++20", "-Wno-unknown-pragmas", f"-I{ROOT / 'tests' / 'kernels' / 'emu'}")  # in place of CUDA
    command(compiler, *flags, Path(__file__).with_name(f"{name}.cpp"), "-o", program)
    return command(program).splitlines()


def read_shapes(folder: Path) -> tuple[dict[tuple, tuple[int, int]], tuple[int, int]]:
    """(type, K, kernel, ghosts) → (threads, dynamic shared bytes), and the tile."""
    first, *lines = run_shapes("cuda_shapes", folder)
    shapes = {}
    for kind, k, name, ghosts, threads, shared in map(str.split, lines):
        shapes[kind, k, f"{name}_kernel", int(ghosts)] = int(threads), int(shared)
    rows, cols = map(int, first.split()[1:])
    return shapes, (rows, cols)


def occupancy(device: Device, registers: int, threads: int, shared: int) -> int:
    """Blocks per multiprocessor: registers come in units of 256 per warp, shared memory in 128 bytes plus 1 KiB."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = device.registers // per_warp // 4 * 4 // warps  # a warp's registers lie in one of four partitions
    by_shared = device.shared // (-(-shared // 128) * 128 + 1024)
    return min(device.blocks, device.warps // warps, by_registers, by_shared)


def bytes_moved(kernel: Kernel, tile: tuple[int, int]) -> tuple[float, float]:
    """Per position and head of 32 channels: what must be moved, and what the kernel asks for, halo included."""
    size, k, channels = BYTES[kernel.type], int(kernel.arguments[1]), 32
    halo = (tile[0] + k - 1) * (tile[1] + k - 1) / (tile[0] * tile[1])
    row, logits, lse = channels * size, k * k * size, 4
    if kernel.role == "forward":
        return 2 * row + logits, (halo + 1) * row + logits
    if kernel.role == "dvalue":  # each logit is used by one position only; lse is read for the whole window
        return 2 * row + logits + lse, (halo + 1) * row + logits + halo * lse
    return 2 * row + 2 * logits + lse, (halo + 1) * row + 2 * logits + lse


def print_table(kernels: list[Kernel], shapes: dict, tile: tuple[int, int]) -> None:
    """One row per instantiation; what differs between architectures is listed in their order."""
    devices = " / ".join(f"{device.name} ({arch})" for arch, device in DEVICES.items())
    print(f"Registers, blocks per multiprocessor and occupancy: {devices}.\n")
    print("| kernel | type | K | ghosts | registers | spills | shared KiB | threads | blocks | occupancy "
          "| bytes: least | asked for | ratio |")  # fmt: skip
    print("|---" * 13 + "|")
    rows: dict[tuple, list[Kernel]] = {}
    for kernel in kernels:
        if kernel.specialised:
            place = (kernel.role, list(UNITS).index(kernel.type), kernel.arguments[1], kernel.ghosts)
            rows.setdefault(place, []).append(kernel)
    for place in sorted(rows):
        group = sorted(rows[place], key=lambda kernel: list(DEVICES).index(kernel.arch))
        one = group[0]
        threads, dynamic = shapes[one.type, one.arguments[1], one.name, one.ghosts]
        blocks = [occupancy(DEVICES[x.arch], x.registers, threads, dynamic + x.static_shared) for x in group]
        share = [f"{n * threads / 32 / DEVICES[x.arch].warps:.0%}" for n, x in zip(blocks, group, strict=True)]
        least, asked = bytes_moved(one, tile)
        cells = [
            one.role, TYPE_NAMES[one.type], one.arguments[1], GHOSTS[one.ghosts],
            " / ".join(str(x.registers) for x in group), sum(x.spills for x in group), f"{dynamic / 1024:.1f}", threads,
            " / ".join(map(str, blocks)), " / ".join(share), f"{least:.0f}", f"{asked:.0f}", f"{asked / least:.2f}",
        ]  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")
    generic = [kernel for kernel in kernels if not kernel.specialised]
    print(
        f"\nGeneric kernels: {min(x.registers for x in generic)} to {max(x.registers for x in generic)} registers,",
        end=" ",
    )
    print(f"at most {max(x.spills for x in generic)} bytes spilled around calls of 64-bit division, 256 threads.")


def problems(kernels: list[Kernel], expected: int) -> list[str]:
    """What --check refuses, `expected` specialised kernels per type and architecture being there. Spills are tolerated
    in the generic kernels: 64-bit divisions are calls there."""
    found = []
    for kernel in kernels:
        name = f"{kernel.arch} {kernel.name}<{', '.join(kernel.arguments)}>"
        if kernel.specialised and (kernel.spills or kernel.local or kernel.count("LDL", "STL")):
            found.append(f"{name}: {kernel.spills} bytes spilled, {kernel.local} bytes of local memory")
        doubles = kernel.count("DFMA", "DADD", "DMUL", "DSETP") + sum(n for x, n in kernel.mix.items() if ".F64" in x)
        if doubles and kernel.type != "double":
            found.append(f"{name}: {doubles} double-precision instructions")
        if kernel.type == "double" and not doubles and kernel.name != "rest_kernel":  # which copies
            found.append(f"{name}: no double-precision instruction was recognised")
        if not kernel.mix:
            found.append(f"{name}: no SASS was found")
    for arch in DEVICES:
        for kind in ("float", "__half", "__nv_bfloat16"):
            count = sum(kernel.arch == arch and kernel.type == kind and kernel.specialised for kernel in kernels)
            if count != expected:
                found.append(f"{arch} {kind}: {count} specialised kernels, expected {expected}")
    return found


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="exit 1 where a kernel breaks a rule")
    parser.add_argument("--library", type=Path, help="a built _cuda library, instead of compiling")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    return parser.parse_args()


def main() -> int:
    arguments = options(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes, tile = read_shapes(folder)
        kernels = all_kernels("launch", arguments, folder)
    print_table(kernels, shapes, tile)
    found = problems(kernels, expected=24)  # three kernel sizes × (3 forward + 3 dvalue + 2 gradient kernels)
    if arguments.check:
        print("\n" + ("\n".join(found) or f"check: {len(kernels)} kernels, nothing to report"))
    return int(arguments.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
