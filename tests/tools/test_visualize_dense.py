"""What tools/visualize.py shows of detectors and segmentors, and of the samples that they are trained with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image
from safetensors.torch import save_file

from elsa.engine import Runtime
from elsa.tools.tasks.command import read
from elsa.tools.tasks.mm import samples
from elsa.tools.tasks.mm.session import build_model, prepare
from elsa.tools.tasks.mm.visualizing import ExplainedMap, ExplainedObject
from elsa.tools.tasks.visualize.look import Picture

KINDS = {"detector": ("coco", "val2017"), "segmentor": ("ade", "images/validation")}


@pytest.fixture
def needs_grad_cam():
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (requirements/visualize.txt)")


@pytest.fixture(params=KINDS)
def dense(request, tmp_path):
    """A recipe, weights as initialised, and the folder of its images."""
    recipe = request.getfixturevalue(request.param)
    data, folder = KINDS[request.param]
    config = read(recipe, [])[1].config
    prepare(config)
    model, _ = build_model(config, Runtime(0, 1, torch.device("cpu")))
    model.init_weights()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    return recipe, tmp_path / "w.safetensors", request.getfixturevalue(data) / folder


def test_all_views(needs_grad_cam, tool, refused, dense, tmp_path):
    recipe, weights, folder = dense
    first = sorted(folder.glob("*.jpg"))[0]
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    outcome = tool("visualize", recipe, weights, tmp_path / "bad.jpg", first, "--output", tmp_path / "seen",
                   "--stage", "2", "--position", "30,11", "--target", "4")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert f"skipping {tmp_path / 'bad.jpg'} cannot be read" in outcome.err
    pictures = {"attention.png", "ghost_head.png", "receptive_field.png", "gradcam.png"}
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"attention.html", *pictures}
    for name in pictures:
        assert np.asarray(Image.open(tmp_path / "seen" / name).convert("L")).std() > 10
    outcome = tool("visualize", recipe, weights, first, "--target", "11th", "--output", tmp_path / "other")
    refused(outcome, "--target 11th is none of the")
    outcome = tool("visualize", recipe, weights, first, "--position", "4000,1", "--output", tmp_path / "other")
    refused(outcome, "--position 4000,1")
    assert not (tmp_path / "other").exists()


class Colours(torch.nn.Module):
    """A segmentor whose logits are red and blue."""

    with_neck = False

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def backbone(self, images):
        return [images[:, ::2] * self.one]

    extract_feat = backbone

    def decode_head(self, maps):
        return maps[0]


def test_the_evidence_of_a_segmentor_is_of_the_class_where_it_is(needs_grad_cam):
    images = torch.zeros(1, 3, 16, 24)
    images[:, 2, :, 10:] = 1
    images[:, 0, :, :10] = 1
    picture = Picture(None, np.zeros((16, 24, 3), np.uint8), images)
    model = Colours().eval()
    found = ExplainedMap(model, ["red", "blue"], None, {})(picture)
    assert "of blue, the most frequent class (58% of the picture)" in found.text
    assert found.heat[:, 11:].min() > 0.9 and found.heat[:, :9].max() < 0.1
    found = ExplainedMap(model, ["red", "blue"], 0, {})(picture)
    assert "of red, asked for (42% of the picture)" in found.text
    assert found.heat[:, 11:].max() < 0.1


def test_a_detector_that_finds_nothing_says_so(needs_grad_cam):
    class Nothing:
        with_roi_head = True
        roi_head = type("Head", (), {"with_bbox": True})

        def test_step(self, batch):
            empty = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=int), scores=torch.zeros(0))
            return [DetDataSample(pred_instances=empty)]

    found = ExplainedObject(Nothing(), ["cat", "dog"], 1, {None: None})(Picture(None, None, None))
    assert found.heat is None and found.text == "no dog is found, so there is nothing to explain"


def test_boxes_are_drawn_where_the_objects_of_a_sample_are(tool, monkeypatch, detector, tmp_path):
    """The data's objects are bright squares on dark noise: what the sheet frames is bright, what is around it dark."""
    seen = []

    class Recorded(samples.ObjectDrawing):
        def figure(self, image, sample):
            seen.append((image, sample, made := super().figure(image, sample)))
            return made

    monkeypatch.setattr(samples, "ObjectDrawing", Recorded)
    outcome = tool("visualize", "data", detector, "--output", tmp_path / "sheet.png", "--count", "3")
    assert outcome.code == 0, outcome.err
    assert "3 samples" in outcome.err and (tmp_path / "sheet.png").exists()
    assert len({sample.img_path for _, sample, _ in seen}) == len(seen) >= 3
    for image, sample, figure in seen:
        [axis] = figure.axes
        labels = [text.get_text() for text in axis.texts]
        assert labels == [str(label) for label in sample.gt_instances.labels.tolist()]
        height, width = sample.img_shape
        assert (axis.get_xlim(), axis.get_ylim()) == ((0, width), (height, 0))
        outside = np.ones((height, width), bool)
        assert len(axis.patches) == len(sample.gt_instances) > 0
        for frame in axis.patches:
            left, top = (round(value) for value in frame.get_xy())
            right, bottom = left + round(frame.get_width()), top + round(frame.get_height())
            assert image[top + 2 : bottom - 2, left + 2 : right - 2].mean() > 150
            outside[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3] = False
        assert image[:height, :width][outside].mean() < 60


def test_the_sheet_of_a_segmentor(tool, segmentor, tmp_path):
    outcome = tool("visualize", "data", segmentor, "--output", tmp_path / "sheet.png", "--count", "3")
    assert outcome.code == 0, outcome.err
    assert np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).std() > 10
