"""What is said of a mask in a COCO file."""

from __future__ import annotations

import math

import numpy as np
import pytest

from elsa.data.coco_masks import fault_of_mask, run_lengths_of_code


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([[1, 1, 5, 1, 5, 5]], None),
        ([[1, 1, 5, 1, 5, 5], [2, 2, 3, 2, 2, 3]], None),
        ([[1, 1, 5, 1]], "mask degenerate"),
        ([[1, 1, 5, 1, 5]], "mask degenerate"),
        ([[1, 1, 5, 1, 5, 5, 4]], "mask degenerate"),
        ([[1, 1, 5, 1, 5, 5], [1, 1, 5, 1]], "mask with a degenerate part"),
        ([[1, 1, 5, True, 5, "5"]], "mask degenerate"),
        ([[1, 1, 5, 1, 5, 13]], "mask far outside its image"),
        ([[-7, 1, 5, 1, 5, 5]], "mask far outside its image"),
        ([[0, 0, 2e8, 0, 2e8, 2e8, 0, 2e8]], "mask far outside its image"),
        ([[1, 1, 5, 1, 5, math.inf]], "mask degenerate"),
        ([[1, 1, 3, 3, 5, 5]], "mask without area"),
        (["text"], "mask degenerate"),
        ("text", "mask degenerate"),
        ({"size": [4, 6]}, "mask degenerate"),
        ({"size": [4, 6], "counts": [20, 4]}, None),
        ({"size": [4, 6], "counts": [24]}, "mask without area"),
        ({"size": [4, 6], "counts": [20, 3]}, "mask degenerate"),
        ({"size": [4, 6], "counts": [-20, 44]}, "mask degenerate"),
        ({"size": [4, 6], "counts": 24}, "mask degenerate"),
        ({"size": [6, 4], "counts": [20, 4]}, "mask of another size"),
        ({"size": [4.0, 6], "counts": [20, 4]}, "mask of another size"),
        ({"size": [4, 6], "counts": "d04"}, None),
        ({"size": [4, 6], "counts": "h0"}, "mask without area"),
        ({"size": [4, 6], "counts": ""}, "mask degenerate"),
        ({"size": [4, 6], "counts": "d0"}, "mask degenerate"),
        ({"size": [4, 6], "counts": "d0\xff"}, "mask degenerate"),
        ({"size": [4, 6], "counts": "d04d"}, "mask degenerate"),
    ],
)
def test_masks(segmentation, kind):
    fault = fault_of_mask(segmentation, (6, 4))
    assert (fault and fault[0]) == kind


def test_compressed_codes_are_read_as_pycocotools_reads_them():
    from pycocotools import mask as masks

    random = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.5, 0.99, 1.0):
        for height, width in ((1, 1), (7, 5), (300, 200)):
            mask = random.random((height, width)) < density
            code = masks.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
            lengths = run_lengths_of_code(code)
            values = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(width, height).T
            np.testing.assert_array_equal(values, mask)
