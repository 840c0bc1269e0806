"""Every configuration of detection: it builds, learns and predicts, and is the published recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from mmengine.utils import import_modules_from_strings

from elsa.models import ELSABlock
from elsa.models.layers import WindowBlock

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs/detection").glob("*_[13]x.py"))
# As published, in millions, rounded; the Swin rows from the paper's comparison.
PARAMETERS = {
    "mask_rcnn_elsa_swin_tiny": 49, "mask_rcnn_elsa_swin_small": 72,
    "cascade_mask_rcnn_elsa_swin_tiny": 86, "cascade_mask_rcnn_elsa_swin_small": 110,
    "mask_rcnn_swin_tiny": 48, "mask_rcnn_swin_small": 69,
    "cascade_mask_rcnn_swin_tiny": 86, "cascade_mask_rcnn_swin_small": 107,
}  # fmt: skip


def load(name: str) -> Config:
    config = Config.fromfile(ROOT / "configs/detection" / f"{name}.py")
    import_modules_from_strings(**config.custom_imports)
    init_default_scope(config.default_scope)
    return config


def example(height: int, width: int) -> dict:
    """An image with two objects."""
    sample = DetDataSample(metainfo=dict(
        img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0), batch_input_shape=(height, width)
    ))  # fmt: skip
    masks = torch.zeros(2, height, width, dtype=torch.uint8).numpy()
    masks[0, 5:40, 5:40], masks[1, 20:60, 30:80] = 1, 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[5.0, 5, 40, 40], [30, 20, 80, 60]]),
        labels=torch.tensor([3, 17]),
        masks=BitmapMasks(masks, height, width),
    )
    return dict(inputs=[torch.randint(0, 255, (3, height, width), dtype=torch.uint8)], data_samples=[sample])


def test_all_are_there():
    """Both schedules of the published detectors and their baselines; those of boxes alone and ELSA-VOLO D1 to D3 with
    one."""
    published = {f"{name}_{schedule}" for name in PARAMETERS for schedule in ("1x", "3x")}
    boxes = {f"{kind}_rcnn_elsa_swin_{size}_1x" for kind in ("faster", "cascade") for size in ("tiny", "small")}
    assert set(CONFIGS) == published | boxes | {f"mask_rcnn_elsa_volo_d{size}_1x" for size in (1, 2, 3)}


SMALL_BOXES = ["faster_rcnn_elsa_swin_small_1x", "cascade_rcnn_elsa_swin_small_1x"]
NANO = ["faster_rcnn_elsa_swin_nano", "mask_rcnn_elsa_swin_nano"]


@pytest.mark.parametrize("name", SMALL_BOXES)
def test_detectors_of_boxes_differ_in_the_backbone_alone(name):
    small, tiny = load(name), load(name.replace("small", "tiny"))
    assert (small.model.backbone.variant, tiny.model.backbone.variant) == ("elsa_swin_small", "elsa_swin_tiny")
    small.model.backbone.variant, small.model.backbone.pretrained = "elsa_swin_tiny", tiny.model.backbone.pretrained
    assert small.to_dict() == tiny.to_dict()


@pytest.mark.parametrize(
    "name", [*(name for name in CONFIGS if name.endswith("1x") and name not in SMALL_BOXES), *NANO]
)
def test_it_builds_learns_and_predicts(name, plain_norms):
    config, longer = load(name), name.replace("_1x", "_3x")
    if longer in CONFIGS:
        assert config.model == load(longer).model, "1x and 3x differ in the schedule alone"
    assert len((ROOT / "configs/detection" / f"{name}.py").read_text().splitlines()) <= 15
    config.model.train_cfg.rpn_proposal.max_per_img = config.model.test_cfg.rpn.max_per_img = 8
    torch.manual_seed(0)
    model = MODELS.build(plain_norms(config.model))
    millions = round(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    assert millions == PARAMETERS.get(name.removesuffix("_1x"), millions)

    wrapper = dict(type="OptimWrapper", optimizer=config.optim_wrapper.optimizer)
    optimizer = build_optim_wrapper(model, {**wrapper, "paramwise_cfg": config.optim_wrapper.paramwise_cfg})
    first = next(block for block in model.backbone.modules() if isinstance(block, (ELSABlock, WindowBlock)))
    before = first.mlp.fc1.weight.detach().clone()
    masks, batch = "mask_" in name, example(64, 96)
    if not masks:
        del batch["data_samples"][0].gt_instances.masks
    losses = model.train().train_step(batch, optimizer)
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values())
    assert losses["loss"] > 0
    assert not torch.equal(before, first.mlp.fc1.weight)
    with torch.no_grad():
        found = model.eval().test_step(example(64, 96))[0].pred_instances
    assert len(found.bboxes) == len(found.scores)
    assert ("masks" in found) == masks == any("mask" in key for key in losses)
    if masks:
        assert found.masks.shape == (len(found.bboxes), 64, 96)

    exempt = {id(p) for group in optimizer.optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    undecayed = {key for key, parameter in model.named_parameters() if id(parameter) in exempt}
    assert undecayed == {key for key, _ in model.named_parameters() if "norm" in key}


@pytest.mark.parametrize(("schedule", "epochs", "steps"), [("1x", 12, [8, 11]), ("3x", 36, [27, 33])])
def test_the_recipe_is_the_published_one(schedule, epochs, steps):
    config = load(f"mask_rcnn_elsa_swin_tiny_{schedule}")
    assert config.train_cfg.max_epochs == epochs
    warm_up, decay = config.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end, warm_up.by_epoch) == ("LinearLR", 0.001, 500, False)
    assert (decay.milestones, decay.end, decay.by_epoch) == (steps, epochs, True)
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.betas, optimizer.weight_decay) == (
        "AdamW",
        1e-4,
        (0.9, 0.999),
        0.05,
    )
    assert config.optim_wrapper.type == "AmpOptimWrapper"
    assert config.global_batch == 16
    assert config.model.backbone.drop_path_rate == 0.2
    sides = config.train_pipeline[3].transforms
    assert [scale for scale, _ in sides[0][0].scales] == [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
    assert {long for _, long in sides[0][0].scales} == {1333}
    assert [scale for scale, _ in sides[1][0].scales] == [400, 500, 600]
    assert sides[1][1].crop_size == (384, 600)
    assert config.test_pipeline[1].scale == (1333, 800)
    assert config.model.train_cfg.rpn_proposal.min_bbox_size == config.model.test_cfg.rpn.min_bbox_size == -1


@pytest.mark.parametrize("kind", ["faster", "cascade"])
def test_boxes_alone_are_the_recipe_with_masks_but_for_the_masks(kind):
    boxes = load(f"{kind}_rcnn_elsa_swin_tiny_1x")
    whole = load(f"{'cascade_mask' if kind == 'cascade' else 'mask'}_rcnn_elsa_swin_tiny_1x")
    assert (boxes.model.roi_head.mask_head, boxes.val_evaluator.metric) == (None, ["bbox"])
    for split in ("train", "test"):
        own, theirs = (config[f"{split}_pipeline"] for config in (boxes, whole))
        assert [step for step in own if step.type != "LoadAnnotations"] == [
            step for step in theirs if step.type != "LoadAnnotations"
        ]
        assert [step for step in own if step.type == "LoadAnnotations"] == [
            dict(type="LoadAnnotations", with_bbox=True)
        ]
    assert boxes.train_dataloader.dataset.dataset.pipeline == boxes.train_pipeline
    assert boxes.test_dataloader.dataset.pipeline == boxes.test_pipeline
    for name in ("optim_wrapper", "param_scheduler", "train_cfg", "global_batch", "run"):
        assert boxes[name] == whole[name]


def test_cascade_heads_are_the_published_ones():
    heads = load("cascade_mask_rcnn_elsa_swin_tiny_1x").model.roi_head.bbox_head
    assert [head.bbox_coder.target_stds[0] for head in heads] == [0.1, 0.05, 0.033]
    for head in heads:
        assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ("ConvFCBBoxHead", 4, 1)
        assert head.norm_cfg.type == "SyncBN"
        assert (head.loss_bbox.type, head.loss_bbox.loss_weight) == ("GIoULoss", 10.0)
        assert head.reg_decoded_bbox
        assert not head.reg_class_agnostic


def test_boxes_stay_float32_under_mixed_precision():
    """A half of a pixel at 1300 is lost in bfloat16: the features of the two boxes must differ."""
    config = load("mask_rcnn_elsa_swin_tiny_1x")
    extractor = MODELS.build(config.model.roi_head.bbox_roi_extractor)
    levels = [torch.arange(400.0 // 2**index).expand(1, 256, 2, -1).bfloat16() for index in range(4)]
    boxes = torch.tensor([[0, 1300.0, 0, 1340, 8], [0, 1300.5, 0, 1340.5, 8]])
    features = extractor(levels, boxes)
    assert features.dtype == torch.float32
    difference = (features[1] - features[0]).mean().item()
    assert difference == pytest.approx(0.5 / 4, abs=0.06)
