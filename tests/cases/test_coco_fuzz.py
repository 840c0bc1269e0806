"""Annotation files with whatever in them: they can be used, or are refused with their name, and a check says so too."""

from __future__ import annotations

import contextlib
import copy
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import DATASETS, init_default_scope

import elsa.data.mm.coco  # noqa: F401  registers
from elsa.core import UserError
from elsa.data import annotations
from elsa.data.checks import check_coco
from elsa.data.mm.loaders import EvalDataset

EXAMPLES = 2000
ODD = st.one_of(
    st.sampled_from([None, True, [], {}, "", "1", "a\0b", "\ud800", "$x$", "蓝色", [[]], [None]]),
    st.sampled_from([{"size": [48, 72], "counts": "0"}, {"size": [48, 72], "counts": [3456]}, {"counts": []}]),
    st.sampled_from([float("nan"), float("inf"), -1, 0, 0.5, 1.0, 2.0, 3, 7, 72, 1e9, 1e300, 10**30, -(10**30)]),
    st.sampled_from([[0, 0, 1e9, 1e9], [5, 5, 0, 8], [-30, 5, 20, 20], [[1, 1, 5, 1, 5, 5]], [[1, 1, 5]], [[9] * 6]]),
)  # fmt: skip
KINDS = ("drop", "set", "reorder", "repeat", "all", "top", "inner")


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_coco):
    init_default_scope("mmdet")
    root = write_coco(tmp_path_factory.mktemp("fuzz") / "data", ("a", "b", "c"), train=3, val=2)
    return root, json.loads((root / "annotations/instances_train2017.json").read_text())


@st.composite
def changes(draw):
    """One to three changes: (kind, list, place, key, value)."""
    name = st.sampled_from(["images", "annotations", "annotations", "categories"])
    key = st.sampled_from(["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "file_name",
                           "width", "height", "name"])  # fmt: skip
    one = st.tuples(st.sampled_from(KINDS), name, st.integers(0, 5), key, ODD)
    return draw(st.lists(one, min_size=1, max_size=3))


def changed(content, kind, name, place, key, value):
    entries = content.get(name)
    if kind == "top":
        content[name] = copy.deepcopy(value)
    if not isinstance(entries, list) or not entries:
        return
    entry = entries[place % len(entries)]
    if kind == "repeat":
        entries.append(copy.deepcopy(entry))
    elif kind == "reorder":
        entries.reverse()
    elif isinstance(entry, dict):
        if kind == "drop":
            entry.pop(key, None)
        elif kind == "set":
            entry[key] = copy.deepcopy(value)
        elif kind == "inner" and isinstance(entry.get(key), list) and entry[key]:
            entry[key][place % len(entry[key])] = copy.deepcopy(value)
        elif kind == "all":
            for other in entries:
                if isinstance(other, dict):
                    other[key] = copy.deepcopy(value)


def open_all(root):
    """Opens the training set as a training and as an evaluation would, and prepares each image."""
    steps = [dict(type="DecodeImage"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
             dict(type="PackDetInputs")]  # fmt: skip
    for test_mode in (False, True):
        dataset = DATASETS.build(dict(
            type="CheckedCocoDataset", data_root=str(root), ann_file="annotations/instances_train2017.json",
            data_prefix=dict(img="train2017/"), metainfo=dict(classes=("a", "b", "c")), pipeline=steps,
            serialize_data=False, test_mode=test_mode,
            filter_cfg=None if test_mode else dict(filter_empty_gt=True, min_size=32),
        ))  # fmt: skip
        for place in range(len(dataset)):
            _, item, bad = EvalDataset(dataset)[place]
            assert bad or item["data_samples"].gt_instances.bboxes.tensor.isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_any_annotation_file_is_used_or_refused_by_its_name(data, monkeypatch):
    root, whole = data
    monkeypatch.setattr(annotations.logger, "disabled", True)
    path, opened = root / "annotations/instances_train2017.json", []

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(changes())
    def run(several):
        content = copy.deepcopy(whole)
        for change in several:
            changed(content, *change)
        path.write_text(json.dumps(content))
        report = check_coco(root, fast=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                open_all(root)
        except UserError as error:
            assert path.name in str(error) or "train2017/" in str(error), error
            assert not report.ok, f"opening: {error}"
            assert "\n" not in str(error)
            opened.append(False)
        else:
            opened.append(True)

    run()
    assert len(opened) >= EXAMPLES
    assert 0.1 < sum(opened) / len(opened) < 0.9, "both are tried"
