"""What the operator's tests share: the compiled backends that can be executed here, random problems, comparison."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve a small machine

import emulation
import pytest
import torch
from devices import GPU

from elsa.kernels import library
from elsa.kernels.reference import elsa_attention_reference

# Relative to the largest value of the compared tensor: storage precision, and room for sums in another order.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NAMES = ("value", "logits", "ghost_mul", "ghost_add")


@dataclass(frozen=True)
class Problem:
    """The sizes of one call."""

    batch: int
    height: int
    width: int
    heads: int
    head_dim: int
    kernel: int
    dilation: int = 1
    mul: bool = False
    add: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.heads, self.kernel, self.dilation

    def tensors(self, device: str = "cpu", seed: int = 0) -> tuple[list[torch.Tensor | None], torch.Tensor]:
        """[value, logits, ghost_mul, ghost_add] and the output's gradient."""
        accumulate = torch.float64 if self.dtype == torch.float64 else torch.float32
        channels, taps = self.heads * self.head_dim, self.kernel**2
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        position = (self.batch, self.height, self.width)
        value, gradient = (random(*position, channels, dtype=self.dtype) for _ in range(2))
        logits = 2 * random(*position, self.heads * taps, dtype=self.dtype)
        ghosts = [random(channels, taps, dtype=accumulate) if present else None for present in (self.mul, self.add)]
        return [value, logits, *ghosts], gradient


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest deviation relative to the largest expected value; infinite where a value is not finite."""
    if found.shape != expected.shape:
        raise AssertionError(f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    if expected.numel() == 0:
        return 0.0
    error = (found.double().cpu() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30)
    return error.item() if torch.isfinite(error) else float("inf")


def compare(problem: Problem, inputs: list, gradient: torch.Tensor, found: dict[str, torch.Tensor]) -> None:
    """Assert that the output and every gradient agree with the reference computed in float64."""
    exact = [None if tensor is None else tensor.detach().cpu().double().requires_grad_() for tensor in inputs]
    out = elsa_attention_reference(*exact, *problem.sizes)
    out.backward(gradient.cpu().double())
    expected = {"out": out.detach()}
    expected |= {name: tensor.grad for name, tensor in zip(NAMES, exact, strict=True) if tensor is not None}
    assert found.keys() == expected.keys()
    for name in expected:
        error = relative_error(found[name], expected[name])
        assert error <= TOLERANCE[problem.dtype], f"{name} of {problem}: relative error {error:.2e}"


@pytest.fixture(scope="session")
def problem_type():
    return Problem


@pytest.fixture(scope="session")
def check_against_reference():
    return compare


@pytest.fixture(scope="session")
def error_of():
    return relative_error


@pytest.fixture(scope="session")
def published_case(golden) -> Callable[[str], SimpleNamespace]:
    """The operator's golden values by name, in our layout and float64: ``sizes`` (heads, kernel, dilation), ``inputs``
    as in ``Problem.tensors``, ``gradient``, ``results`` (out, dvalue, dlogits, dmul, dadd); None for absent ghosts.

    The published code has one head per batch entry and ghosts of its own for each: entries become heads of one image.
    """
    cases, results = golden.json("op"), golden.npz("op")

    def get(name: str) -> SimpleNamespace:
        case = cases[name]
        heads, channels, kernel = case["batch"], case["channels"], case["kernel_size"]
        plane, ghost_shape = (case["height"], case["width"]), (heads, channels, kernel, kernel)

        def named(tensor: str, *shape: int) -> torch.Tensor:
            return golden.tensor(f"{name}/{tensor}", *shape, dtype=torch.float64)

        def fold(tensor: torch.Tensor) -> torch.Tensor:
            """(heads, n, H, W) → (1, H, W, heads·n)."""
            return tensor.flatten(0, 1).permute(1, 2, 0)[None].contiguous()

        def fold_ghost(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.reshape(heads * channels, kernel**2)

        mul = fold_ghost(named("mul", *ghost_shape)) ** case["lam"] if case["lam"] else None
        add = fold_ghost(named("add", *ghost_shape)) * case["gamma"] if case["gamma"] else None
        value, gradient = (fold(named(x, heads, channels, *plane)) for x in ("v", "grad"))
        logits = fold(named("logits", heads, kernel**2, *plane))
        found = {x: torch.from_numpy(results[f"{name}/{x}"]) for x in ("out", "dv", "dlogits", "dmul", "dadd")
                 if f"{name}/{x}" in results.files}  # fmt: skip
        return SimpleNamespace(
            sizes=(heads, kernel, case["dilation"]),
            inputs=[value, logits, mul, add],
            gradient=gradient,
            results=[
                *(fold(found[x]) for x in ("out", "dv", "dlogits")),
                *(fold_ghost(found[x]) if x in found else None for x in ("dmul", "dadd")),
            ],
        )

    return get


@pytest.fixture
def compiled_cpu():
    """Skips where the CPU kernels are not compiled, and says why."""
    if library.OBSTACLES["cpu"] is not None:
        pytest.skip(library.OBSTACLES["cpu"])


@pytest.fixture(params=["plain", "avx2", "avx512", "avx512_bf16"])
def instruction_set(request, compiled_cpu):
    """Runs the test with the CPU kernels of each instruction set that this processor has."""
    before = library.cpu_instruction_set()
    try:
        library.cpu_instruction_set(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield request.param
    library.cpu_instruction_set(before)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=GPU)])
def device(request) -> str:
    """Where tensors live: on the CPU the emulated library runs, on the GPU the installed one."""
    if request.param == "emulated":
        torch.ops.load_library(emulation.library())
        return "cpu"
    return "cuda"
