"""Data sets of detection and segmentation hold their entries in one array, which loader processes share."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

import elsa.data.mm.coco
import elsa.data.mm.maps  # noqa: F401  both register


@pytest.fixture
def coco(tmp_path, write_coco):
    root = write_coco(tmp_path / "coco", ("a", "b", "c"))
    files = dict(ann_file="annotations/instances_train2017.json", data_prefix=dict(img="train2017/"))
    return dict(type="CheckedCocoDataset", data_root=str(root), metainfo=dict(classes=("a", "b", "c")), **files)


@pytest.fixture
def maps(tmp_path):
    for folder, ending in (("images", "jpg"), ("maps", "png")):
        (tmp_path / folder).mkdir()
        for number in range(8):
            Image.fromarray(np.full((8, 8), number % 3, np.uint8)).save(tmp_path / folder / f"{number}.{ending}")
    prefix = dict(img_path="images", seg_map_path="maps")
    facts = dict(data_root=str(tmp_path), metainfo=dict(classes=("sky", "tree")))
    return dict(type="CheckedMapsDataset", data_prefix=prefix, **facts)


@pytest.mark.parametrize(("scope", "name"), [("mmdet", "coco"), ("mmseg", "maps")])
def test_entries_are_one_array(request, scope, name):
    init_default_scope(scope)
    dataset = DATASETS.build({**request.getfixturevalue(name), "pipeline": []})
    assert len(dataset) == 8
    assert not dataset.data_list
    assert isinstance(dataset.data_bytes, np.ndarray)
    assert dataset.get_data_info(3)["img_path"].startswith(dataset.data_root)
