"""The CPU kernels against the reference: output and every gradient, every type, instruction set and ghost mode."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elsa.kernels import elsa_attention, library

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
GHOSTS = [(False, False), (False, True), (True, False), (True, True)]


def run(inputs, gradient, problem):
    """Output and gradients straight from the C++ operators."""
    out = torch.ops.elsa.attention_forward(*inputs, *problem.sizes)
    gradients = torch.ops.elsa.attention_backward(gradient, *inputs, *problem.sizes)
    found = {"out": out}
    for name, tensor, grad in zip(("value", "logits", "ghost_mul", "ghost_add"), inputs, gradients, strict=True):
        if tensor is None:
            assert grad.numel() == 0
        else:
            found[name] = grad
    return found


# Head sizes that fill whole chunks of vectors (the specialised kernels) and ones that leave a remainder; maps smaller
# than the kernel; rows that are not a multiple of a block.
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("mul", "add"), GHOSTS)
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_every_kernel(instruction_set, problem_type, check_against_reference, kernel, mul, add, dtype):
    for sizes in ((2, 9, 16, 2, 32), (1, 6, 5, 1, 64), (1, 5, 8, 3, 7)):
        problem = problem_type(*sizes, kernel, 1, mul, add, dtype)
        inputs, gradient = problem.tensors()
        check_against_reference(problem, inputs, gradient, run(inputs, gradient, problem))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_shapes(instruction_set, problem_type, check_against_reference, data):
    draw = data.draw
    heads = draw(st.sampled_from([1, 2, 3, 4, 8, 32]), "heads")
    problem = problem_type(
        batch=draw(st.integers(1, 3), "batch"),
        height=draw(st.integers(1, 12), "height"),
        width=draw(st.integers(1, 18), "width"),
        heads=heads,
        head_dim=draw(st.integers(1, 6) if heads > 4 else st.sampled_from([1, 3, 8, 16, 17, 32, 40]), "head_dim"),
        kernel=draw(st.sampled_from([1, 3, 5, 7, 9, 11]), "kernel"),
        dilation=draw(st.integers(1, 4), "dilation"),
        mul=draw(st.booleans(), "mul"),
        add=draw(st.booleans(), "add"),
        dtype=draw(st.sampled_from(TYPES), "dtype"),
    )
    inputs, gradient = problem.tensors(seed=draw(st.integers(0, 99), "seed"))
    check_against_reference(problem, inputs, gradient, run(inputs, gradient, problem))


def test_dilation_larger_than_the_map(instruction_set, problem_type, check_against_reference):
    for dilation in (5, 9, 2**31):
        problem = problem_type(2, 5, 9, 2, 8, 3, dilation, True, True)
        inputs, gradient = problem.tensors()
        exact = problem_type(2, 5, 9, 2, 8, 3, min(dilation, 9), True, True)  # the reference pads by the dilation
        check_against_reference(exact, inputs, gradient, run(inputs, gradient, problem))


def test_extreme_logits(instruction_set, error_of):
    """Far apart, equal, and minus infinity: the softmax neither overflows nor loses the largest."""
    value = torch.randn(1, 8, 16, 32)
    logits = torch.randn(1, 8, 16, 49)
    logits[:, 0] *= 1e4
    logits[:, 1] += 1e30
    logits[:, 2] = -3e38
    logits[:, 3, :, 1:] = -torch.inf
    arguments = {"num_heads": 1, "kernel_size": 7}
    out = elsa_attention(value, logits, backend="cpu", **arguments)
    assert error_of(out, elsa_attention(value, logits, backend="reference", **arguments)) < 1e-5


@pytest.mark.parametrize("kernel", [3, 7, 9])
def test_not_a_number_is_not_lost(instruction_set, kernel):
    logits = torch.zeros(1, 4, 16, kernel**2)
    logits[0, 1, 2, 0] = float("nan")
    logits[0, 2, 3, :] = -torch.inf
    logits[0, 3, 4, kernel**2 - 1] = torch.inf
    out = elsa_attention(torch.ones(1, 4, 16, 32), logits, num_heads=1, kernel_size=kernel, backend="cpu")
    bad = torch.zeros(4, 16, dtype=torch.bool)
    bad[1, 2] = bad[2, 3] = bad[3, 4] = True
    assert torch.equal(out[0].isnan().all(-1), bad)
    assert torch.equal(out[0].isnan().any(-1), bad)


def test_independent_of_the_number_of_threads(instruction_set, problem_type):
    problem = problem_type(3, 30, 17, 3, 32, 7, 1, True, True)
    inputs, gradient = problem.tensors()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(inputs, gradient, problem))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_no_reads_or_writes_outside(instruction_set, problem_type):
    """Neighbours of the inputs in memory are NaN and must not be seen."""
    problem = problem_type(1, 5, 9, 2, 19, 5, 1, True, True)
    inputs, gradient = problem.tensors()
    guarded = []
    for tensor in (*inputs, gradient):
        memory = torch.full((tensor.numel() + 128,), float("nan"))
        inner = memory[64 : 64 + tensor.numel()].view(tensor.shape)
        inner.copy_(tensor)
        guarded.append(inner)
    found, expected = run(guarded[:4], guarded[4], problem), run(inputs, gradient, problem)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
def test_value_may_be_a_slice(instruction_set, problem_type, dilation, dtype):
    """Rows, columns and channels of a wider map, read in place; all around them is NaN."""
    problem = problem_type(2, 7, 17, 2, 32, 7, dilation, False, True, dtype)
    (value, *rest), gradient = problem.tensors()
    packed = torch.full((2, 9, 36, 192), float("nan"), dtype=dtype)
    inner = packed[:, 1:8, 1:35:2, 64:128]
    inner.copy_(value)
    expected = run([value, *rest], gradient, problem)
    for other in (inner, inner.mT.contiguous().mT):  # the second has distant channels, and is copied
        found = run([other, *rest], gradient, problem)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_value_may_repeat(instruction_set, problem_type):
    problem = problem_type(3, 6, 9, 1, 32, 3, 1, True, True)
    (value, *rest), gradient = problem.tensors()
    found = run([value[:1].expand_as(value), *rest], gradient, problem)
    expected = run([value[:1].repeat(3, 1, 1, 1), *rest], gradient, problem)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_instruction_set_by_name(compiled_cpu):
    before = library.cpu_instruction_set()
    assert library.cpu_instruction_set("plain") == "plain"
    assert library.cpu_instruction_set(before) == before
    with pytest.raises(ValueError, match=r"'sse9' does not exist.*plain, avx2, avx512, avx512_bf16"):
        library.cpu_instruction_set("sse9")
    with pytest.raises(RuntimeError, match="instruction set 7 is not supported here"):
        torch.ops.elsa._cpu_isa(7)


@pytest.mark.parametrize(("wanted", "outcome"), [("plain", "'cpu_instruction_set': 'plain'"), ("sse9", "is 'sse9'")])
def test_instruction_set_from_the_environment(compiled_cpu, wanted, outcome):
    code = "from elsa.kernels import backend_info; print(backend_info())"
    environment = {**os.environ, "ELSA_CPU_ISA": wanted}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert outcome in result.stdout
