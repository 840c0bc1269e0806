"""What the authors' published code computed, against every backend that runs on a CPU."""

import pytest
import torch

from elsa.kernels import backend_info, elsa_attention


@pytest.mark.parametrize("name", ["k7", "k5_ghost", "k3_dil2", "k3_mul", "k5_plain", "tiny_map"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_published_values(name, dtype, backend, published_case, error_of):
    if backend_info()[backend] != "available":
        pytest.skip(backend_info()[backend])
    case = published_case(name)
    inputs = [None if t is None else t.to(dtype).requires_grad_() for t in case.inputs]
    heads, kernel, dilation = case.sizes
    out = elsa_attention(*inputs, num_heads=heads, kernel_size=kernel, dilation=dilation, backend=backend)
    out.backward(case.gradient.to(dtype))

    found = [out.detach(), *(None if t is None else t.grad for t in inputs)]
    for what, ours, theirs in zip(("out", "dvalue", "dlogits", "dmul", "dadd"), found, case.results, strict=True):
        assert (ours is None) == (theirs is None), what
        assert ours is None or error_of(ours, theirs) <= 1e-5, what


def test_the_golden_file_has_no_other_case(golden):
    assert set(golden.json("op")) == {"k7", "k5_ghost", "k3_dil2", "k3_mul", "k5_plain", "tiny_map"}
