"""The door: choice of backend, and every refusal, in Python and straight at the C++ operators."""

import pytest
import torch

from elsa.kernels import backend_info, elsa_attention, library, linear_info

SIZES = {"num_heads": 2, "kernel_size": 3}


def inputs(dtype=torch.float32, shape=(1, 4, 5, 8), taps=9, heads=2):
    value = torch.randn(shape, dtype=dtype)
    return [value, torch.randn(*shape[:3], heads * taps, dtype=dtype), *torch.randn(2, shape[3], taps)]


def without(monkeypatch, reason="no compiler"):
    monkeypatch.setattr(library, "OBSTACLES", {"cpu": reason, "cuda": reason})


def test_auto_takes_the_compiled_kernels(compiled_cpu, monkeypatch):
    def forbidden(*args):
        raise AssertionError("the reference ran")

    monkeypatch.setattr("elsa.kernels.functional.elsa_attention_reference", forbidden)
    monkeypatch.delenv("ELSA_BACKEND", raising=False)
    elsa_attention(*inputs(), **SIZES)
    with pytest.raises(AssertionError, match="the reference ran"):
        elsa_attention(*inputs(), **SIZES, backend="reference")
    with pytest.raises(AssertionError, match="the reference ran"):
        elsa_attention(*inputs(), **SIZES, attn_drop=0.5)


def test_without_compiled_kernels(monkeypatch, error_of):
    arguments = inputs()
    expected = elsa_attention(*arguments, **SIZES, backend="reference")
    without(monkeypatch)
    assert torch.equal(elsa_attention(*arguments, **SIZES), expected)
    backends = {"reference": "available", "cpu": "no compiler", "cuda": "no compiler"}
    assert backend_info() == backends | {"linear": linear_info()}
    for backend in ("cpu", "cuda"):
        with pytest.raises(RuntimeError, match=f"backend '{backend}' cannot run: no compiler"):
            elsa_attention(*arguments, **SIZES, backend=backend)


def test_the_environment_names_the_choice_of_auto(compiled_cpu, monkeypatch):
    monkeypatch.setenv("ELSA_BACKEND", "no-such")
    with pytest.raises(ValueError, match=r"ELSA_BACKEND is 'no-such'; choose one of auto, reference, cpu, cuda"):
        elsa_attention(*inputs(), **SIZES)
    monkeypatch.setenv("ELSA_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run"):
        elsa_attention(*inputs(), **SIZES)
    elsa_attention(*inputs(), **SIZES, backend="cpu")  # asked for by name


def test_a_named_backend_never_falls_back(compiled_cpu):
    with pytest.raises(RuntimeError, match=r"'cpu' cannot run: it has no attention dropout, and attn_drop is 0\.1"):
        elsa_attention(*inputs(), **SIZES, attn_drop=0.1, backend="cpu")
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run"):
        elsa_attention(*inputs(), **SIZES, backend="cuda")
    meta = [t.to("meta") for t in inputs()]
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run: the tensors are on meta"):
        elsa_attention(*meta, **SIZES, backend="cpu")
    assert elsa_attention(*meta, **SIZES).shape == (1, 4, 5, 8)


# name of the argument → a wrong value made from the right ones; what is raised at the door, what its message contains;
# what the C++ operator says (a RuntimeError always).
REFUSALS = {
    "even kernel": ({"kernel_size": 4}, ValueError, "kernel_size must be odd, got 4", "odd and positive, got 4"),
    "no kernel": ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0", "odd and positive, got 0"),
    "negative kernel": ({"kernel_size": -3}, ValueError, "at least 1, got -3", "odd and positive, got -3"),
    "no dilation": ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0", "at least 1, got 0"),
    "negative dilation": ({"dilation": -1}, ValueError, "dilation must be at least 1, got -1", "at least 1, got -1"),
    "no heads": ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0", "at least 1, got 0"),
    "heads": ({"num_heads": 3}, ValueError, "8 channels, 3 heads", "8 channels, 3 heads"),
    "taps": (
        {"logits": lambda t: t[..., :17]},
        ValueError,
        r"\(1, 4, 5, 18\), got shape \(1, 4, 5, 17\)",
        r"logits must have shape \[1, 4, 5, 18\], got \[1, 4, 5, 17\]",
    ),
    "map": ({"logits": lambda t: t[:, 1:]}, ValueError, r"got shape \(1, 3, 5, 18\)", r"got \[1, 3, 5, 18\]"),
    "rank": ({"value": lambda t: t[0]}, ValueError, r"\(B, H, W, C\), got shape", r"got shape \[4, 5, 8\]"),
    "ghost shape": (
        {"ghost_add": lambda t: t.t()},
        ValueError,
        r"ghost_add must be \(C, K²\) = \(8, 9\), got shape \(9, 8\)",
        r"ghost_add must have shape \[8, 9\], got \[9, 8\]",
    ),
    "ghost batch": ({"ghost_mul": lambda t: t[None]}, ValueError, "ghost_mul must be", "ghost_mul must have shape"),
    "dtypes": ({"logits": lambda t: t.double()}, TypeError, "logits has dtype", "must have dtype float32"),
    "ghost dtype": ({"ghost_mul": lambda t: t.double()}, TypeError, "ghost_mul has dtype", "ghost_mul must have dtype"),
    "integers": (
        {"value": lambda t: t.int()},
        TypeError,
        "value must be float16, bfloat16, float32 or float64, got torch.int32",
        "value must be float16, bfloat16, float32 or float64",
    ),
    "devices": ({"logits": lambda t: t.to("meta")}, TypeError, "logits is on meta, value on cpu", None),
    "no rows": (
        {"value": lambda t: t[:, :0], "logits": lambda t: t[:, :0]},
        ValueError,
        "at least one position",
        "at least one position",
    ),
    "no columns": (
        {"value": lambda t: t[:, :, :0], "logits": lambda t: t[:, :, :0]},
        ValueError,
        "at least one position",
        "at least one position",
    ),
}


def wrong(changes):
    names = ("value", "logits", "ghost_mul", "ghost_add")
    arguments = dict(zip(names, inputs(), strict=True)) | {**SIZES, "dilation": 1}
    return arguments | {name: c(arguments[name]) if callable(c) else c for name, c in changes.items()}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_refused_at_the_door(case, backend):
    changes, error, message, _ = REFUSALS[case]
    with pytest.raises(error, match=message):
        elsa_attention(**wrong(changes), backend=backend)


@pytest.mark.parametrize("case", [case for case in REFUSALS if REFUSALS[case][3]])
def test_refused_by_the_operator(compiled_cpu, case):
    changes, _, _, message = REFUSALS[case]
    arguments = list(wrong(changes).values())
    with pytest.raises(RuntimeError, match=message):
        torch.ops.elsa.attention_forward(*arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.elsa.attention_backward(torch.randn(1, 4, 5, 8), *arguments)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.randn(1, 4, 5, 7), r"grad_out must have shape \[1, 4, 5, 8\], got \[1, 4, 5, 7\]"),
        (torch.randn(1, 4, 5, 8).double(), "grad_out must have dtype float32, got float64"),
    ],
)
def test_wrong_output_gradient(compiled_cpu, gradient, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.elsa.attention_backward(gradient, *inputs(), 2, 3, 1)


@pytest.mark.parametrize(("name", "number"), [("num_heads", 2.0), ("kernel_size", "3"), ("dilation", True)])
def test_sizes_that_are_not_integers(name, number):
    with pytest.raises(TypeError, match=f"{name} must be an int"):
        elsa_attention(*inputs(), **{**SIZES, name: number})


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"backend 'gpu' does not exist; choose one of auto, reference, cpu, cuda"):
        elsa_attention(*inputs(), **SIZES, backend="gpu")
