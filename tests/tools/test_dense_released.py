"""Checkpoints in the form of the released detectors (mmdet 2.11) are evaluated as they are."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from mmdet.datasets import CocoDataset

CLASSES = CocoDataset.METAINFO["classes"]


@pytest.fixture(scope="module")
def coco80(tmp_path_factory, write_coco):
    """A data set with COCO's 80 classes and one image to evaluate."""
    return write_coco(tmp_path_factory.mktemp("coco") / "coco", CLASSES, train=1, val=1)


def released(shapes, path, **meta):
    """A file as mmdet 2.11 wrote it: small random weights under the released names."""
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith(("num_batches_tracked", "relative_id")):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("running_var"):
            state[name] = torch.ones(shape)
        else:
            state[name] = torch.randn(shape) * 0.02
    meta = dict(
        epoch=12, iter=87960, mmdet_version="2.11.0+unknown", seed=None, time="Tue Nov 23 10:00:00 2021",
        config="model = dict(type='MaskRCNN')\n" * 20, CLASSES=CLASSES, hook_msgs=dict(),
        env_info="sys.platform: linux\nPyTorch: 1.7.1", exp_name=argparse.Namespace(name="config.py"), **meta,
    )  # fmt: skip
    torch.save(dict(meta=meta, state_dict=state, optimizer=dict(state={}, param_groups=[dict(lr=1e-6)])), path)
    return path


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn"])
def test_a_released_detector_is_evaluated(tool, root, golden, coco80, tmp_path, detector, size):
    shapes = golden.json("released_dense_state_dicts")[f"{detector}_elsa_swin_{size}"]
    path = released(shapes, tmp_path / "released.pth")
    outcome = tool(
        "evaluate", root / f"configs/detection/{detector}_elsa_swin_{size}_1x.py", path, "--output", tmp_path / "eval",
        "--set", f"data_root={coco80}", "test_dataloader.dataset.pipeline.1.scale=(96, 64)",
        "test_dataloader.num_workers=0", "model.test_cfg.rpn.max_per_img=8", "model.test_cfg.rcnn.score_thr=0.0",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert f"loaded {len(shapes)} of {len(shapes)} tensors from entry 'state_dict'" in outcome.err
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["count"] == 1
    assert results["checkpoint"]["meta"]["mmdet_version"] == "2.11.0+unknown"
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= set(results["metrics"])


def test_proposals_without_area_are_kept_as_mmdet_2_kept_them(root):
    """A weak model proposes such boxes; today's mmdet would drop them, and detections would differ."""
    from mmengine.config import Config, ConfigDict
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.utils import import_modules_from_strings

    config = Config.fromfile(root / "configs/detection/mask_rcnn_elsa_swin_tiny_1x.py")
    import_modules_from_strings(**config.custom_imports)
    init_default_scope("mmdet")
    head = MODELS.build({**config.model.rpn_head, "train_cfg": None, "test_cfg": config.model.test_cfg.rpn})
    torch.manual_seed(0)
    levels = [(torch.randn(1, 3, side, side), torch.randn(1, 12, side, side)) for side in (8, 4, 2, 1, 1)]
    for _, deltas in levels:
        deltas[:, 2::4] = -20.0  # width e⁻²⁰: clipped to next to nothing
    scores, deltas = zip(*levels, strict=True)
    metas = [dict(img_shape=(0, 0), scale_factor=(1.0, 1.0))]  # every box is clipped to a point
    without = ConfigDict({**config.model.test_cfg.rpn, "min_bbox_size": 0})
    kept, dropped = (
        head.predict_by_feat(list(scores), list(deltas), batch_img_metas=metas, cfg=cfg) for cfg in (None, without)
    )
    assert len(kept[0]) > 0
    assert len(dropped[0]) == 0


def test_the_released_weights_predict_with_their_own_classes(tool, root, golden, coco80, tmp_path):
    """Class names come from the file; COCO's category ids have their gaps."""
    shapes = golden.json("released_dense_state_dicts")["mask_rcnn_elsa_swin_tiny"]
    path = released(shapes, tmp_path / "released.pth")
    outcome = tool(
        "predict", root / "configs/detection/mask_rcnn_elsa_swin_tiny_1x.py", path, coco80 / "val2017",
        "--output", tmp_path / "said", "--set", "test_dataloader.dataset.pipeline.1.scale=(96, 64)",
        "model.test_cfg.rpn.max_per_img=8", "model.test_cfg.rcnn.score_thr=0.0",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    said = json.loads((tmp_path / "said" / "predictions.json").read_text())
    ids = {category["name"]: category["id"] for category in said["categories"]}
    assert len(ids) == 80
    assert (ids["person"], ids["stop sign"], ids["toothbrush"]) == (1, 13, 90)
