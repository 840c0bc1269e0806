"""Products with, and sums over, the neighbours of each position, against their definition position by position."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from elsa.kernels import neighbour_products, neighbour_sums

SIZES = [(1, 1, 3, 1), (5, 4, 3, 1), (4, 5, 5, 2), (3, 2, 1, 1)]  # height, width, K, dilation


def taps(height, width, kernel_size, dilation):
    """(y, x, t, y', x') of every position and tap that lies in the map."""
    for y in range(height):
        for x in range(width):
            for t in range(kernel_size**2):
                row = y + (t // kernel_size - kernel_size // 2) * dilation
                column = x + (t % kernel_size - kernel_size // 2) * dilation
                if 0 <= row < height and 0 <= column < width:
                    yield y, x, t, row, column


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double).requires_grad_()


@pytest.mark.parametrize("height, width, kernel_size, dilation", SIZES)
def test_products_are_those_of_the_neighbours(height, width, kernel_size, dilation):
    query, key = (draw(2, height, width, 6, seed=seed) for seed in (0, 1))
    expected = torch.zeros(2, height, width, 2, kernel_size**2, dtype=torch.double)
    for y, x, t, row, column in taps(height, width, kernel_size, dilation):
        pair = (map_.unflatten(-1, (2, 3)) for map_ in (query[:, y, x], key[:, row, column]))
        expected[:, y, x, :, t] = math.prod(pair).sum(-1)
    of = dict(num_heads=2, kernel_size=kernel_size, dilation=dilation)
    torch.testing.assert_close(neighbour_products(query, key, **of), expected.flatten(-2))
    assert torch.autograd.gradcheck(lambda q, k: neighbour_products(q, k, **of), (query, key), fast_mode=True)


@pytest.mark.parametrize("with_filters", [False, True])
@pytest.mark.parametrize("height, width, kernel_size, dilation", SIZES)
def test_sums_are_over_the_neighbours(height, width, kernel_size, dilation, with_filters):
    weights = draw(2, height, width, 2 * kernel_size**2, seed=0)
    value = draw(2, height, width, 6, seed=1)
    filters = draw(2, 6, kernel_size**2, seed=2) if with_filters else None
    expected = torch.zeros(2, height, width, 6, dtype=torch.double)
    for y, x, t, row, column in taps(height, width, kernel_size, dilation):
        weight = weights[:, y, x].unflatten(-1, (2, -1))[..., t].repeat_interleave(3, -1)
        expected[:, y, x] += weight * value[:, row, column] * (1 if filters is None else filters[..., t])
    of = dict(num_heads=2, kernel_size=kernel_size, dilation=dilation)
    torch.testing.assert_close(neighbour_sums(weights, value, filters, **of), expected)
    given = (weights, value) if filters is None else (weights, value, filters)
    assert torch.autograd.gradcheck(lambda *given: neighbour_sums(*given, **of), given, fast_mode=True)


def test_torch_knows_the_operators():
    query, weights, filters = draw(2, 4, 5, 6, seed=0), draw(2, 4, 5, 18, seed=1), draw(2, 6, 9, seed=2)
    torch.library.opcheck(torch.ops.elsa.neighbour_products, (query, query.detach().clone(), 2, 3, 1))
    torch.library.opcheck(torch.ops.elsa.neighbour_sums, (weights, query, filters, 2, 3, 1))
    torch.library.opcheck(torch.ops.elsa.neighbour_sums, (weights, query, None, 2, 3, 1))


def test_half_precision_is_accumulated_in_float32():
    query = torch.full((1, 1, 1, 4096), 1.0, dtype=torch.bfloat16)
    key = torch.full((1, 1, 1, 4096), 1.0, dtype=torch.bfloat16)
    assert neighbour_products(query, key, num_heads=1, kernel_size=1).item() == 4096  # in bfloat16 256


def test_operations_are_counted():
    query, weights = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 18)
    with FlopCounterMode(display=False) as counter:
        neighbour_products(query, query, num_heads=2, kernel_size=3)
        neighbour_sums(weights, query, num_heads=2, kernel_size=3)
    assert counter.get_total_flops() == 2 * (2 * query.numel() * 9)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(num_heads=4, kernel_size=3), "num_heads must divide the channels: 6 channels, 4 heads"),
        (dict(num_heads=2, kernel_size=4), "kernel_size must be odd and positive, got 4"),
        (dict(num_heads=2, kernel_size=3, dilation=0), "dilation must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(arguments, said):
    x = torch.randn(1, 4, 5, 6)
    for run in (lambda: neighbour_products(x, x, **arguments), lambda: neighbour_sums(x, x, **arguments)):
        with pytest.raises(ValueError, match=said):
            run()


def test_shapes_that_do_not_fit_are_named():
    x = torch.randn(1, 4, 5, 6)
    with pytest.raises(ValueError, match=r"got \(1, 4, 5, 6\) and \(1, 4, 5\)"):
        neighbour_products(x, x[..., 0], num_heads=2, kernel_size=3)
    with pytest.raises(ValueError, match=r"weights must be \(B, H, W, G·K²\) = \(1, 4, 5, 18\)"):
        neighbour_sums(x, x, num_heads=2, kernel_size=3)
    with pytest.raises(ValueError, match=r"filters must be \(B, C, K²\) = \(1, 6, 9\)"):
        neighbour_sums(torch.randn(1, 4, 5, 18), x, torch.randn(6, 9), num_heads=2, kernel_size=3)
