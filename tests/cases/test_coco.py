"""Annotation files as users have them: labels by name, what is mended, what is refused, what an evaluation counts."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

import elsa.data.mm.coco  # noqa: F401  registers
from elsa.core import ConfigError, DataError, UnreadableData
from elsa.data.annotations import Annotations
from elsa.data.checks import check_coco
from elsa.data.mm.loaders import eval_loader, train_loader
from elsa.engine import Runtime
from elsa.tools.tasks.mm.evaluation import build_evaluator, evaluate, measure
from elsa.tools.tasks.mm.pictures import category_ids

CLASSES = ("a", "b", "c")
ALONE = Runtime(0, 1, torch.device("cpu"))


@pytest.fixture
def data(tmp_path, write_coco):
    init_default_scope("mmdet")
    return write_coco(tmp_path / "data", CLASSES, train=4, val=3)


@pytest.fixture
def edit(data):
    """``edit(change, split="val")`` changes an annotation file."""

    def call(change, split="val"):
        path = data / f"annotations/instances_{split}2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return path

    return call


def settings(data, split="val", masks=False, **more):
    steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=masks),
             dict(type="PackDetInputs")]  # fmt: skip
    return dict(
        type="CheckedCocoDataset", data_root=str(data), ann_file=f"annotations/instances_{split}2017.json",
        data_prefix=dict(img=f"{split}2017/"), test_mode=split == "val", serialize_data=False,
        pipeline=steps, **{"metainfo": dict(classes=CLASSES), **more},
    )  # fmt: skip


class Right(BaseModel):
    """Finds what the annotations say, with the labels of the data set that it learnt from."""

    def __init__(self, labels):
        super().__init__()
        self.labels = labels

    def forward(self, inputs, data_samples=None, mode="tensor"):
        for sample in data_samples:
            boxes, names = self.labels[sample.img_path]
            found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            sample.pred_instances = InstanceData(
                bboxes=found,
                labels=torch.tensor([CLASSES.index(name) for name in names]),
                scores=torch.ones(len(names)),
            )
        return data_samples


@pytest.fixture
def right(data):
    """The detector that is always right about the validation set as it was written."""
    content = json.loads((data / "annotations/instances_val2017.json").read_text())
    labels = {}
    for image in content["images"]:
        mine = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in mine)]
        labels[str(data / "val2017" / image["file_name"])] = (
            boxes,
            [CLASSES[entry["category_id"] - 1] for entry in mine],
        )
    return Right(labels)


def measured(model, data, max_bad=0, **more):
    loader = eval_loader({"dataset": settings(data, **more)}, 0, 1)
    evaluator = build_evaluator(dict(type="CocoMetric", metric="bbox", classwise=True), loader)
    return measure(model, loader, evaluator, ALONE, max_bad)


def turned_round(content):
    content["categories"].reverse()


def other_ids(content):
    for entry, key in ((c, "id") for c in content["categories"]):
        entry[key] = {1: 9, 2: 0, 3: 5}[entry[key]]
    for entry in content["annotations"]:
        entry["category_id"] = {1: 9, 2: 0, 3: 5}[entry["category_id"]]


def from_zero(content):
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = number


def without_extras(content):
    for entry in content["annotations"]:
        del entry["iscrowd"], entry["area"], entry["id"], entry["segmentation"]


def with_supercategory(content):
    content["categories"].insert(0, dict(id=0, name="a", supercategory="none"))


def ids_as_text(content):
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"image {entry['image_id']}"


CHANGES = (turned_round, other_ids, from_zero, without_extras, with_supercategory, ids_as_text)


@pytest.mark.parametrize("change", CHANGES)
def test_a_detector_that_is_right_has_ap_1_however_the_file_is_written(data, edit, right, change):
    edit(change)
    numbers = measured(right, data).numbers
    assert numbers["coco/bbox_mAP"] == 1.0
    per_class = [numbers[f"coco/{name}_precision"] for name in CLASSES]
    present = {name for _, names in right.labels.values() for name in names}
    assert [value == 1.0 for value in per_class] == [name in present for name in CLASSES]
    assert np.isnan(numbers["coco/bbox_mAP_l"]), "no large object: no number"


def test_labels_follow_the_classes_of_the_recipe_and_ids_are_the_files_own(data, edit):
    edit(other_ids)
    edit(turned_round)
    opened = DATASETS.build(settings(data))
    content = json.loads((data / "annotations/instances_val2017.json").read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    expected = [CLASSES.index(names[entry["category_id"]]) for entry in content["annotations"]]
    assert [one["bbox_label"] for info in opened.data_list for one in info["instances"]] == expected
    assert opened.metainfo["category_ids"] == [9, 0, 5]
    recipe = Config(dict(test_dataloader=dict(dataset=settings(data))))
    assert category_ids(recipe, CLASSES, None) == [9, 0, 5]
    assert category_ids(recipe, CLASSES, [4, 5, 6]) == [4, 5, 6]
    assert category_ids(recipe, ("x", "y"), None) == [1, 2]


def test_a_class_that_has_another_name_in_the_file(data, edit, right):
    edit(lambda content: content["categories"][1].update(name="bee"))
    with pytest.raises(DataError, match=r"instances_val2017.json lacks 1 of 3 classes, 'b'.*it has 'a', 'bee', 'c'"):
        measured(right, data)
    assert measured(right, data, metainfo=dict(classes=CLASSES, category_names={"b": "bee"})).numbers[
        "coco/bbox_mAP"
    ] == 1.0  # fmt: skip
    with pytest.raises(ConfigError, match="category_names has 'bb', which is none"):
        measured(right, data, metainfo=dict(classes=CLASSES, category_names={"bb": "bee"}))
    with pytest.raises(ConfigError, match="one class is"):
        measured(right, data, metainfo=dict(classes="abc"))


def test_two_categories_of_a_name_that_both_have_annotations(data, edit):
    path = edit(lambda content: content["categories"].append(dict(id=7, name="a")))
    edit(lambda content: content["annotations"][0].update(category_id=7))
    edit(lambda content: content["annotations"][1].update(category_id=1))
    with pytest.raises(DataError, match=r"duplicate name \(id 1 with \d annotations, id 7 with 1 annotations\)"):
        DATASETS.build(settings(data))
    DATASETS.build(settings(data, metainfo=dict(classes=("b", "c"))))
    assert {fault.kind for fault in Annotations(path).faults} == {"categories: duplicate name"}


REFUSED = {
    "bbox": [5, 5, float("nan"), 8], "image_id": 99, "category_id": 99, "iscrowd": "no", "area": "much",
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_an_entry_that_would_end_a_run_is_refused_with_file_number_and_key(data, edit, key):
    edit(lambda content: content["annotations"][3].update({key: REFUSED[key]}))
    with pytest.raises(DataError, match=rf"instances_val2017.json: annotation 4, .*{key}: "):
        DATASETS.build(settings(data))


@pytest.mark.parametrize(
    "mask", [None, [], [[1, 1, 5, 1]], [[0, 0, 2e8, 0, 2e8, 2e8]], {"size": [9, 9], "counts": [81]}]
)
def test_masks_matter_where_they_are_loaded(data, edit, mask):
    edit(lambda content: content["annotations"][2].update(segmentation=mask))
    with pytest.raises(DataError, match=r"instances_val2017.json: annotation 3, image 2, segmentation: mask "):
        DATASETS.build(settings(data, masks=True))
    loader = eval_loader({"dataset": settings(data)}, 0, 1)
    with pytest.raises(DataError, match="segmentation: mask"):
        build_evaluator(dict(type="CocoMetric", metric=["bbox", "segm"]), loader)
    assert not check_coco(data).ok


def test_what_is_mended_is_said_once_with_its_number(data, edit, caplog):
    edit(without_extras)
    with caplog.at_level(logging.WARNING, "elsa"):
        DATASETS.build(settings(data))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert all("and 5 more such" in line and "instances_val2017.json" in line for line in told)


def test_areas_are_those_of_masks_else_of_boxes(data, edit):
    path = edit(lambda content: [entry.pop("area") for entry in content["annotations"]])
    edit(lambda content: content["annotations"][0].update(segmentation=[[0, 0, 10, 0, 10, 10]]))
    edit(lambda content: content["annotations"][1].pop("segmentation"))
    assert [entry["area"] for entry in Annotations(path, masks=False).annotations[:3]] == [50, 400, 400]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_file_without_an_object_is_refused(data, edit, split):
    edit(lambda content: content.update(annotations=[]), split)
    with pytest.raises(DataError, match=f"instances_{split}2017.json: annotations: no annotation"):
        DATASETS.build(settings(data, split))
    with pytest.raises(DataError, match="no object of the 1 classes"):
        other = "val" if split == "train" else "train"
        edit(lambda content: content["categories"].append(dict(id=4, name="d")), other)
        DATASETS.build(settings(data, other, metainfo=dict(classes=("d",))))


def test_the_evaluators_file_is_the_data_sets(data):
    opened = DATASETS.build(settings(data))
    with pytest.raises(ConfigError, match=r"instances_train2017.json is another file .*instances_val2017.json"):
        METRICS.build(dict(type="CheckedCocoMetric", dataset=opened,
                           ann_file=str(data / "annotations/instances_train2017.json")))  # fmt: skip
    METRICS.build(dict(type="CheckedCocoMetric", dataset=opened, ann_file=opened.ann_file))


def test_an_image_that_cannot_be_read_is_left_out_with_its_truth(data, right):
    (data / "val2017/002.jpg").write_text("no image")
    with pytest.raises(UnreadableData, match=r"1 images cannot be read \(run.max_bad is 0\): .*002.jpg"):
        measured(right, data)
    found = measured(right, data, max_bad=1)
    assert found.numbers["coco/bbox_mAP"] == 1.0
    assert found.count == 2
    assert len(found.skipped) == 1 and "val2017/002.jpg" in found.skipped[0]
    loader = eval_loader({"dataset": settings(data), "batch_size": 3}, 0, 1)
    evaluator = build_evaluator(dict(type="CocoMetric", metric="bbox"), loader)
    result = evaluate(right, loader, evaluator, ALONE, "coco/bbox_mAP", 1)
    assert result.count == 2 and "without 1 that cannot be read" in result.text
    assert "coco/bbox_mAP_l" not in result.numbers


def test_a_step_that_cannot_take_an_image_counts_it_as_unreadable(data):
    class Fails:
        def __call__(self, results):
            if results["img_path"].endswith("002.jpg"):
                raise AssertionError("too long\nfor one line")
            return results

    loaded = settings(data, "train")
    loaded["pipeline"].insert(2, Fails())
    wrapped = dict(dataset=dict(type="SeededDataset", dataset=loaded))
    batches = train_loader(wrapped, (2, 1), 0, 0, 1, max_bad=1)
    assert batches.loader.dataset.metainfo["category_ids"] == [1, 2, 3], "they go into the checkpoint"
    list(batches.epoch(0))
    (name,) = batches.bad.names
    assert name.endswith("002.jpg")


@pytest.mark.parametrize(("size", "part"), [((48, 72), "stored"), ((30, 30), "30×30")])
def test_images_of_another_size_than_noted_are_refused(data, size, part):
    exif = Image.Exif()
    exif[0x0112] = 6 if part == "stored" else 1
    Image.new("RGB", (72, 48) if part == "stored" else size).save(data / "val2017/001.jpg", exif=exif)
    with pytest.raises(DataError, match=rf"001.jpg.*{part}"):
        DATASETS.build(settings(data))
    assert not check_coco(data).ok
