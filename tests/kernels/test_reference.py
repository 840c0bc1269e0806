"""The operator: the authors' values, a brute-force oracle, gradients, precision, borders and every refusal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from elsa.kernels import backend_info, elsa_attention

GHOSTS = ["none", "mul", "add", "both"]
SHAPES = [  # batch, height, width, channels, heads, kernel, dilation
    (2, 5, 3, 6, 2, 3, 1),
    (1, 2, 7, 4, 1, 5, 1),
    (1, 1, 1, 3, 3, 3, 1),
    (2, 4, 6, 4, 2, 3, 2),
    (1, 3, 2, 2, 1, 7, 2),
    (1, 3, 4, 4, 4, 1, 3),
]


def random_inputs(shape, ghosts="both", dtype=torch.float64, seed=0):
    """Arguments of the operator: four tensors (absent ghosts are None) and the keywords."""
    batch, height, width, channels, heads, kernel, dilation = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    value, logits = draw(batch, height, width, channels), draw(batch, height, width, heads * kernel**2)
    mul, add = draw(channels, kernel**2), draw(channels, kernel**2)
    tensors = [value, logits, mul if ghosts in ("mul", "both") else None, add if ghosts in ("add", "both") else None]
    return tensors, dict(num_heads=heads, kernel_size=kernel, dilation=dilation)


def oracle(value, logits, mul, add, num_heads, kernel_size, dilation):
    """The formula, one output number at a time."""
    batch, height, width, channels = value.shape
    taps = kernel_size**2
    out = np.zeros((batch, height, width, channels))
    for b, i, j, c in np.ndindex(*out.shape):
        head = c // (channels // num_heads)
        scores = np.exp(logits[b, i, j, head * taps : (head + 1) * taps])
        for t in range(taps):
            row = i + dilation * (t // kernel_size - kernel_size // 2)
            column = j + dilation * (t % kernel_size - kernel_size // 2)
            if 0 <= row < height and 0 <= column < width:
                weight = scores[t] / scores.sum()
                weight = weight * (1 if mul is None else mul[c, t]) + (0 if add is None else add[c, t])
                out[b, i, j, c] += weight * value[b, row, column, c]
    return out


def relative_error(actual, expected):
    actual, expected = np.asarray(torch.as_tensor(actual).detach()), np.asarray(expected)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", ["k7", "k5_ghost", "k3_dil2", "k3_mul", "k5_plain", "tiny_map"])
def test_output_and_every_gradient_equal_the_authors(golden, name):
    case, stored = golden.json("op")[name], golden.npz("op")
    batch, channels, height, width = (case[key] for key in ("batch", "channels", "height", "width"))
    kernel, lam, gamma = case["kernel_size"], case["lam"], case["gamma"]

    def leaf(entry, *shape):
        return golden.tensor(f"{name}/{entry}", *shape, dtype=torch.float64).requires_grad_()

    leaves = dict(
        dv=leaf("v", batch, channels, height, width),
        dlogits=leaf("logits", batch, kernel**2, height, width),
        dmul=leaf("mul", batch, channels, kernel, kernel),
        dadd=leaf("add", batch, channels, kernel, kernel),
    )
    value, logits, mul, add = leaves.values()
    out = torch.cat(
        [  # the published layout has its own ghost head for every batch entry
            elsa_attention(
                value[b : b + 1].permute(0, 2, 3, 1),
                logits[b : b + 1].permute(0, 2, 3, 1),
                mul[b].flatten(1) ** lam if lam else None,
                add[b].flatten(1) * gamma if gamma else None,
                num_heads=1,
                kernel_size=kernel,
                dilation=case["dilation"],
            ).permute(0, 3, 1, 2)
            for b in range(batch)
        ]
    )
    out.backward(golden.tensor(f"{name}/grad", *out.shape, dtype=torch.float64))

    assert relative_error(out, stored[f"{name}/out"]) < 1e-5
    compared = [entry for entry in leaves if f"{name}/{entry}" in stored]
    assert compared == ["dv", "dlogits", *["dmul"] * bool(lam), *["dadd"] * bool(gamma)]
    for entry in compared:
        assert relative_error(leaves[entry].grad, stored[f"{name}/{entry}"]) < 1e-5, entry


def test_the_golden_file_has_no_other_case(golden):
    assert set(golden.json("op")) == {"k7", "k5_ghost", "k3_dil2", "k3_mul", "k5_plain", "tiny_map"}


@pytest.mark.parametrize("ghosts", GHOSTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_formula(shape, ghosts):
    tensors, keywords = random_inputs(shape, ghosts)
    out = elsa_attention(*tensors, **keywords)
    arrays = [None if tensor is None else tensor.numpy() for tensor in tensors]
    np.testing.assert_allclose(out.numpy(), oracle(*arrays, **keywords), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ghosts", GHOSTS)
@pytest.mark.parametrize("shape", [(2, 3, 2, 4, 2, 3, 1), (1, 2, 3, 2, 1, 3, 2), (1, 2, 1, 2, 2, 5, 1)], ids=str)
def test_gradients_are_exact(shape, ghosts):
    tensors, keywords = random_inputs(shape, ghosts)
    given = [None if tensor is None else tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *inputs: elsa_attention(*inputs, **keywords), given)


@pytest.mark.parametrize("ghosts", GHOSTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_rounded_once(dtype, ghosts):
    """Output and gradients differ from float64 on the same inputs by the one rounding of the result."""
    tensors, keywords = random_inputs((2, 9, 7, 8, 2, 7, 1), ghosts, dtype)
    halves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    doubles = [None if tensor is None else tensor.double().requires_grad_() for tensor in tensors]
    out, exact = elsa_attention(*halves, **keywords), elsa_attention(*doubles, **keywords)
    assert out.dtype == dtype

    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(exact.shape, generator=generator, dtype=torch.float64).to(dtype)
    out.backward(upstream)
    exact.backward(upstream.double())
    pairs = [
        (out, exact),
        *((half.grad, double.grad) for half, double in zip(halves, doubles, strict=True) if half is not None),
    ]
    for rounded, precise in pairs:
        assert rounded.dtype == dtype
        unit = torch.finfo(dtype).eps / 2
        slack = 1e-5 * precise.abs().max() + torch.finfo(dtype).tiny  # float32 arithmetic before the rounding
        assert torch.all((rounded.double() - precise).abs() <= unit * precise.abs() * 1.01 + slack)


def test_ghosts_may_stay_in_float32_with_half_values():
    tensors, keywords = random_inputs((1, 5, 4, 4, 2, 3, 1), dtype=torch.bfloat16)
    value, logits, mul, add = tensors
    out = elsa_attention(value, logits, mul.float(), add.float(), **keywords)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, elsa_attention(*tensors, **keywords))


def test_taps_outside_the_map_keep_their_share():
    """With equal logits and ones as values, a position gets the share of its taps that lie inside."""
    height, width, kernel = 4, 5, 3
    out = elsa_attention(
        torch.ones(1, height, width, 1), torch.zeros(1, height, width, kernel**2), num_heads=1, kernel_size=kernel
    )[0, :, :, 0]
    for i, j in itertools.product(range(height), range(width)):
        inside = sum(0 <= i + di < height and 0 <= j + dj < width for di in (-1, 0, 1) for dj in (-1, 0, 1))
        assert out[i, j].item() == pytest.approx(inside / kernel**2)


def test_each_tap_reads_its_own_neighbour():
    """Taps count row by row from the top left: all weight on tap t moves the map by t's offset."""
    value = torch.arange(1.0, 21.0).reshape(1, 4, 5, 1)
    for t in range(9):
        logits = torch.full((1, 4, 5, 9), -1e4)
        logits[..., t] = 0
        out = elsa_attention(value, logits, num_heads=1, kernel_size=3)
        row, column = t // 3 - 1, t % 3 - 1
        moved = torch.nn.functional.pad(value, (0, 0, 1, 1, 1, 1))[:, 1 + row : 5 + row, 1 + column : 6 + column]
        assert torch.equal(out, moved), t


def test_large_logits_do_not_overflow():
    tensors, keywords = random_inputs((1, 4, 3, 4, 2, 3, 1), dtype=torch.float16)
    out = elsa_attention(tensors[0], tensors[1] * 10_000, *tensors[2:], **keywords)
    assert out.isfinite().all()


def test_views_give_what_contiguous_tensors_give():
    tensors, keywords = random_inputs((2, 5, 4, 6, 2, 3, 1))
    views = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in tensors]
    assert not any(view.is_contiguous() for view in views)
    assert torch.equal(elsa_attention(*views, **keywords), elsa_attention(*tensors, **keywords))


@pytest.mark.parametrize("ghosts", GHOSTS)
def test_empty_batch(ghosts):
    tensors, keywords = random_inputs((0, 3, 4, 4, 2, 3, 1), ghosts)
    given = [None if tensor is None else tensor.requires_grad_() for tensor in tensors]
    out = elsa_attention(*given, **keywords)
    assert out.shape == (0, 3, 4, 4)
    out.sum().backward()
    for tensor in given[2:]:
        assert tensor is None or not tensor.grad.any()


def test_attn_drop_drops_softmax_weights_and_keeps_the_mean():
    """Equal logits and no border: the output is a mean of kept weights / (1 − p), the additive ghost untouched."""
    torch.manual_seed(0)
    value, logits = torch.ones(1, 64, 64, 1), torch.zeros(1, 64, 64, 9)
    keywords = dict(num_heads=1, kernel_size=3)
    dropped = elsa_attention(value, logits, attn_drop=0.5, **keywords)[0, 1:-1, 1:-1]
    ninths = dropped * 9 / 2  # each kept tap counts 2/9
    assert torch.allclose(ninths, ninths.round(), atol=1e-4)
    assert len(ninths.round().unique()) > 5
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)

    ghost = torch.full((1, 9), 3.0)
    torch.manual_seed(0)
    added = elsa_attention(value, logits, None, ghost, attn_drop=0.5, **keywords)[0, 1:-1, 1:-1]
    assert torch.allclose(added, dropped + 27, atol=1e-4)


def test_attn_drop_zero_is_deterministic():
    tensors, keywords = random_inputs((1, 4, 5, 4, 2, 3, 1))
    assert torch.equal(elsa_attention(*tensors, attn_drop=0.0, **keywords), elsa_attention(*tensors, **keywords))


def test_the_reference_can_be_asked_for_by_name():
    tensors, keywords = random_inputs(SHAPES[0])
    assert backend_info()["reference"] == "available"
    chosen = elsa_attention(*tensors, backend="reference", **keywords)
    torch.testing.assert_close(chosen, elsa_attention(*tensors, **keywords))


VALUE, LOGITS, GHOST = torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 4, 18), torch.zeros(6, 9)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (dict(num_heads=0), ValueError, ["num_heads", "0"]),
        (dict(num_heads=4), ValueError, ["num_heads", "6", "4"]),
        (dict(num_heads=2.0), TypeError, ["num_heads", "2.0"]),
        (dict(num_heads=True), TypeError, ["num_heads", "True"]),
        (dict(kernel_size=4), ValueError, ["kernel_size", "4", "3", "5"]),
        (dict(kernel_size=-3), ValueError, ["kernel_size", "-3"]),
        (dict(kernel_size="3"), TypeError, ["kernel_size", "'3'"]),
        (dict(dilation=0), ValueError, ["dilation", "0"]),
        (dict(dilation=1.5), TypeError, ["dilation", "1.5"]),
        (dict(attn_drop=1.0), ValueError, ["attn_drop", "1.0"]),
        (dict(attn_drop=-0.1), ValueError, ["attn_drop", "-0.1"]),
        (dict(attn_drop=float("nan")), ValueError, ["attn_drop", "nan"]),
        (dict(backend="cudaa"), ValueError, ["'cudaa'", "auto", "reference"]),
        (dict(value=VALUE[0]), ValueError, ["value", "(3, 4, 6)"]),
        (dict(value=VALUE[:, :0], logits=LOGITS[:, :0]), ValueError, ["value", "(2, 0, 4, 6)"]),
        (dict(value=VALUE[:, :, :0], logits=LOGITS[:, :, :0]), ValueError, ["value", "(2, 3, 0, 6)"]),
        (dict(value=VALUE[..., :0]), ValueError, ["value", "(2, 3, 4, 0)"]),
        (dict(value=VALUE.long()), TypeError, ["value", "int64"]),
        (dict(value=VALUE.numpy()), TypeError, ["value", "ndarray"]),
        (dict(value=None), TypeError, ["value", "None"]),
        (dict(logits=None), TypeError, ["logits", "None"]),
        (dict(logits=LOGITS[..., :17]), ValueError, ["logits", "(2, 3, 4, 18)", "(2, 3, 4, 17)"]),
        (dict(logits=LOGITS[:1]), ValueError, ["logits", "(1, 3, 4, 18)"]),
        (dict(logits=LOGITS.double()), TypeError, ["logits", "float64", "float32"]),
        (dict(logits=LOGITS.to("meta")), TypeError, ["logits", "meta", "cpu"]),
        (dict(ghost_mul=GHOST[:5]), ValueError, ["ghost_mul", "(6, 9)", "(5, 9)"]),
        (dict(ghost_add=GHOST.reshape(6, 3, 3)), ValueError, ["ghost_add", "(6, 3, 3)"]),
        (dict(ghost_add=GHOST.half()), TypeError, ["ghost_add", "float16"]),
        (dict(ghost_mul=1.0), TypeError, ["ghost_mul", "float"]),
    ],
    ids=lambda entry: "-".join(entry) if isinstance(entry, dict) else None,
)
def test_refusals_name_what_is_wrong(changes, error, said):
    arguments = dict(value=VALUE, logits=LOGITS, ghost_mul=GHOST, ghost_add=GHOST, num_heads=2, kernel_size=3)
    elsa_attention(**arguments)
    with pytest.raises(error) as caught:
        elsa_attention(**{**arguments, **changes})
    for word in said:
        assert word in str(caught.value)
