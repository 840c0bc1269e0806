# Mask R-CNN with slim heads on scenes of handwritten digits, from the quick start's classifier: minutes on two cores.
_base_ = ["_base_/mask_rcnn_nano.py", "_base_/coco.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
embedded = dict(type="digits-coco", root="datasets/digits-coco/")  # drawn where it is not there
data_root = "datasets/digits-coco/"
digits = dict(classes=tuple("0123456789"))
normalize = dict(mean=[76.5, 76.5, 76.5], std=[89.25, 89.25, 89.25])  # as the classifier was trained
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=(256, 256), ratio_range=(0.8, 1.2), keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(256, 256), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
model = dict(
    data_preprocessor=normalize,
    backbone=dict(pretrained="runs/quickstart/last.safetensors"),
    rpn_head=dict(anchor_generator=dict(scales=[6])),
    roi_head=dict(bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10)),
)
_scenes = dict(data_root=data_root, metainfo=digits)
train_dataloader = dict(
    num_workers=0, aspect_group=None, dataset=dict(dataset=dict(pipeline=train_pipeline, **_scenes))
)
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline, **_scenes))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
global_batch = 4
train_cfg = dict(max_epochs=8, val_interval=2, save_steps=0)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=8, milestones=[7], gamma=0.2),
]
run = dict(log_every=25, max_bad=0)
