"""What the authors' published code computed, against every backend that runs on a CPU."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from elsa.kernels import backend_info, elsa_attention

GOLDEN = Path(os.environ.get("ELSA_GOLDEN", Path(__file__).resolve().parents[3] / "shared/golden"))
CASES = json.loads((GOLDEN / "op.json").read_text()) if (GOLDEN / "op.json").exists() else {}


@pytest.fixture(scope="module")
def tensor():
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tensor


def inputs_of(name, case, tensor):
    """One published head is one of our batch entries' own ghosts, so entries become heads of a single image."""
    b, c, h, w, k = (case[key] for key in ("batch", "channels", "height", "width", "kernel_size"))

    def channels_last(t):
        return t.reshape(1, -1, h, w).permute(0, 2, 3, 1).contiguous()

    value = channels_last(tensor(f"{name}/v", b, c, h, w, dtype=torch.float64))
    logits = channels_last(tensor(f"{name}/logits", b, k * k, h, w, dtype=torch.float64))
    ghosts = (tensor(f"{name}/{ghost}", b, c, k, k, dtype=torch.float64) for ghost in ("mul", "add"))
    mul, add = (ghost.reshape(b * c, k * k) for ghost in ghosts)
    gradient = channels_last(tensor(f"{name}/grad", b, c, h, w, dtype=torch.float64))
    mul = mul ** case["lam"] if case["lam"] else None
    add = add * case["gamma"] if case["gamma"] else None
    return value, logits, mul, add, gradient


@pytest.mark.skipif(not CASES, reason=f"no golden values in {GOLDEN}; set ELSA_GOLDEN")
@pytest.mark.parametrize("name", CASES or ["absent"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_published_values(name, dtype, backend, tensor, error_of):
    if backend_info()[backend] != "available":
        pytest.skip(backend_info()[backend])
    case, golden = CASES[name], np.load(GOLDEN / "op.npz")
    *inputs, gradient = (None if t is None else t.to(dtype) for t in inputs_of(name, case, tensor))
    for t in inputs:
        if t is not None:
            t.requires_grad_()
    b, c, h, w, k = (case[key] for key in ("batch", "channels", "height", "width", "kernel_size"))
    out = elsa_attention(*inputs, num_heads=b, kernel_size=k, dilation=case["dilation"], backend=backend)
    out.backward(gradient)

    def published(key):
        return torch.from_numpy(golden[f"{name}/{key}"])

    def channels_first(t, per_head):
        return t.detach().permute(0, 3, 1, 2).reshape(b, per_head, h, w)

    assert error_of(channels_first(out, c), published("out")) <= 1e-5
    assert error_of(channels_first(inputs[0].grad, c), published("dv")) <= 1e-5
    assert error_of(channels_first(inputs[1].grad, k * k), published("dlogits")) <= 1e-5
    for ghost, key in ((inputs[2], "dmul"), (inputs[3], "dadd")):
        assert (ghost is None) == (f"{name}/{key}" not in golden.files)
        if ghost is not None:
            assert error_of(ghost.grad.reshape(b, c, k, k), published(key).reshape(b, c, k, k)) <= 1e-5
