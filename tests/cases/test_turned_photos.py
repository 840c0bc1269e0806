"""Photos that a camera notes to be turned, with annotations made on the stored pixels, through every verb's loader."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from elsa.core import DataError
from elsa.data.mm.coco import CheckedCocoDataset
from elsa.data.mm.loaders import eval_loader, train_loader
from elsa.tools.tasks.mm.session import prepare

RED = (220, 30, 30)


@pytest.fixture
def photos(tmp_path, root):
    """Four grey photos of 72 × 48 stored pixels, noted to be turned by 90°, with a red square and its box."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images, annotations = [], []
    (tmp_path / "train").mkdir()
    for number in range(1, 5):
        pixels = np.full((48, 72, 3), 90, np.uint8)
        pixels[20:36, 8:24] = RED
        Image.fromarray(pixels).save(tmp_path / "train" / f"{number}.png", exif=exif)
        images.append(dict(id=number, file_name=f"{number}.png", width=72, height=48))
        annotations.append(dict(id=number, image_id=number, category_id=1, bbox=[8, 20, 16, 16], area=256, iscrowd=0,
                                segmentation=[[8, 20, 24, 20, 24, 36, 8, 36]]))  # fmt: skip
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name="square")])
    (tmp_path / "train.json").write_text(json.dumps(content))

    class Scope:
        default_scope = "mmdet"

    prepare(Scope)
    steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True), dict(type="PackDetInputs")]
    return dict(type=CheckedCocoDataset, data_root=str(tmp_path), ann_file="train.json", pipeline=steps,
                data_prefix=dict(img="train"), metainfo=dict(classes=("square",)))  # fmt: skip


def seen(batches):
    """The mean colour, red first, of what each box encloses, and of all else."""
    for batch in batches:
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            boxes = sample.gt_instances.bboxes
            ((left, top, right, bottom),) = getattr(boxes, "tensor", boxes).int().tolist()
            yield image[:, top:bottom, left:right].flip(0).float().mean((1, 2)).tolist()


def test_boxes_lie_where_they_belong_once_the_recipe_says_so(photos):
    training = dict(dataset=dict(type="SeededDataset", dataset=photos))
    loader = train_loader(training, (2, 1), 0, 0, 1, 0, "stored")
    steps = [batch for step in loader.epoch(0) for batch in step]
    evaluation = [batch.data for batch in eval_loader(dict(dataset=photos), 0, 1, "stored")]
    for batches in (steps, evaluation):
        colours = list(seen(batches))
        assert len(colours) == 4
        assert np.allclose(colours, RED, atol=1)


def test_else_the_set_is_refused_when_it_is_opened(photos):
    told = r"1\.png is 48×72, turned by its camera's note.*annotations are for 72×48.*image_orientation=stored"
    with pytest.raises(DataError, match=told):
        train_loader(dict(dataset=dict(type="SeededDataset", dataset=photos)), (2, 1), 0, 0, 1, 0)
    with pytest.raises(DataError, match=told):
        eval_loader(dict(dataset=photos), 0, 1)
