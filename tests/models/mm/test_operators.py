"""mmcv's NMS and RoIAlign on torchvision: against a definition written out, and against a compiled mmcv."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from elsa.models.mm import operators

operators.provide()


def boxes(count: int) -> torch.Tensor:
    torch.manual_seed(count)
    corner = torch.rand(count, 2) * 20
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * 12], 1)


def keep_by_definition(boxes, scores, threshold, offset):
    kept = []
    for index in scores.argsort(descending=True).tolist():
        x1, y1, x2, y2 = boxes[index].tolist()
        overlaps = []
        for other in kept:
            a1, b1, a2, b2 = boxes[other].tolist()
            width = max(0.0, min(x2, a2) - max(x1, a1) + offset)
            height = max(0.0, min(y2, b2) - max(y1, b1) + offset)
            area = (x2 - x1 + offset) * (y2 - y1 + offset) + (a2 - a1 + offset) * (b2 - b1 + offset)
            overlaps.append(width * height / (area - width * height))
        if all(overlap <= threshold for overlap in overlaps):
            kept.append(index)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms_is_greedy_suppression(threshold, offset):
    from mmcv.ops import nms

    where, scores = boxes(40), torch.rand(40)
    kept, index = nms(where, scores, threshold, offset)
    assert index.tolist() == keep_by_definition(where, scores, threshold, offset)
    torch.testing.assert_close(kept, torch.cat([where[index], scores[index, None]], 1))


def test_roi_align_averages_bilinear_samples():
    """The gradient map of x is constant, so a box's average along x is that of its middle points."""
    from mmcv.ops import RoIAlign

    ramp = torch.arange(16.0).expand(1, 1, 16, 16).contiguous()
    layer = RoIAlign(output_size=4, spatial_scale=0.5, sampling_ratio=2)
    pooled = layer(ramp, torch.tensor([[0, 4.0, 6.0, 20.0, 22.0]]))
    expected = torch.tensor([1.5 + 2 + 2 * step - 1 for step in range(4)])  # (4 … 20) / 2 − half a pixel, in quarters
    torch.testing.assert_close(pooled[0, 0], expected.expand(4, 4))


def test_roi_align_has_the_gradient_of_its_input():
    from mmcv.ops import roi_align

    where = torch.cat([torch.zeros(3, 1), boxes(3)], 1)
    features = torch.randn(1, 2, 12, 14, requires_grad=True)
    direction, grad = torch.randn(1, 2, 12, 14), torch.randn(3, 2, 3, 3)
    roi_align(features, where, (3, 3), 0.5, 2, "avg", True).backward(grad)
    step = 0.5  # the operator is linear in its input: a finite difference is exact
    with torch.no_grad():
        ahead, behind = (
            roi_align(features + sign * step * direction, where, (3, 3), 0.5, 2, "avg", True) for sign in (1, -1)
        )
    torch.testing.assert_close((features.grad * direction).sum(), ((ahead - behind) / (2 * step) * grad).sum())


def test_an_operator_that_is_not_there_says_so_when_it_is_called():
    from mmcv.ops import soft_nms  # importing it is fine

    if not isinstance(sys.modules[operators.NAME], operators._Operators):
        pytest.skip("a compiled mmcv has every operator")
    with pytest.raises(operators.MissingOperator, match="softnms needs a compiled mmcv"):
        soft_nms(boxes(3), torch.rand(3), 0.3)


def test_the_same_numbers_as_a_compiled_mmcv():
    if isinstance(sys.modules[operators.NAME], operators._Operators):
        pytest.skip("no compiled mmcv here to compare with")
    compiled = importlib.import_module(operators.NAME)
    where, scores = boxes(200), torch.rand(200)
    for offset in (0, 1):
        ours = operators.nms(where, scores, 0.5, offset)
        assert ours.tolist() == compiled.nms(where, scores, iou_threshold=0.5, offset=offset).tolist()
    features, rois = torch.randn(2, 4, 20, 24), torch.cat([torch.randint(0, 2, (200, 1)), where], 1)
    options = dict(aligned_height=7, aligned_width=7, spatial_scale=0.5, sampling_ratio=0, pool_mode=1, aligned=True)
    none = features.new_zeros(0)
    results = []
    for module in (operators, compiled):
        output, gradient = features.new_zeros(200, 4, 7, 7), torch.zeros_like(features)
        module.roi_align_forward(features, rois, output, none, none, **options)
        module.roi_align_backward(torch.ones_like(output), rois, none, none, gradient, **options)
        results.append((output, gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
