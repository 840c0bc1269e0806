# UPerNet with slim heads on scenes of handwritten digits, from the quick start's classifier: 12 minutes on two cores
# with two processes. Scenes are small here, for speed, and many, for the digits in them overfit soon.
_base_ = ["_base_/upernet_nano.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
embedded = dict(type="digits-ade", root="datasets/digits-ade/", train=3200)  # drawn where it is not there
data_root = "datasets/digits-ade/"
digits = dict(
    classes=(*"0123456789", "texture"),
    palette=[[31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189], [140, 86, 75],
             [227, 119, 194], [188, 189, 34], [23, 190, 207], [255, 187, 120], [127, 127, 127]],
)  # fmt: skip
image = dict(type="LoadImageFromFile")
labels = dict(type="LoadCheckedAnnotations")
train_pipeline = [
    image,
    labels,
    dict(type="RandomResize", scale=(112, 112), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(96, 96), cat_max_ratio=1.0),
    dict(type="PackSegInputs"),
]
test_pipeline = [image, dict(type="Resize", scale=(128, 128), keep_ratio=True), labels, dict(type="PackSegInputs")]
scales = [(int(128 * ratio), int(128 * ratio)) for ratio in (0.75, 1.0, 1.25)]
tta_pipeline = [
    image,
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=scale, keep_ratio=True) for scale in scales],
            [dict(type="RandomFlip", prob=0.0, direction="horizontal")],  # mirrored digits are others
            [labels],
            [dict(type="PackSegInputs")],
        ],
    ),
]
# Three quarters of the labelled pixels are texture, whose gradient would drown that of the digits.
balanced = dict(_delete_=True, type="ClassWeightedLoss", class_weight=[*[1.0] * 10, 0.2])
model = dict(
    data_preprocessor=dict(mean=[76.5, 76.5, 76.5], std=[89.25, 89.25, 89.25], size=(96, 96)),
    backbone=dict(pretrained="runs/quickstart/last.safetensors"),
    decode_head=dict(num_classes=11, loss_decode=balanced),
    auxiliary_head=dict(num_classes=11, loss_decode=balanced),
    test_cfg=dict(crop_size=(96, 96), stride=(64, 64)),
)
_scenes = dict(type="CheckedMapsDataset", data_root=data_root, metainfo=digits)
train_dataloader = dict(num_workers=0, dataset=dict(dataset=dict(pipeline=train_pipeline, **_scenes)))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline, **_scenes))
test_dataloader = val_dataloader
global_batch = 16
train_cfg = dict(max_iters=2400, val_interval=1200, save_steps=0)
optim_wrapper = dict(
    # Muon needs half of AdamW's steps. AdamW keeps the first and the last layer, as usual, and stage 4, whose large
    # matrices are much of what Muon costs.
    optimizer=dict(
        _delete_=True, type="TimmOptimizer", opt="muon", lr=1.2e-2, momentum=0.95, nesterov=True, weight_decay=0.01,
        fallback_lr_scale=0.17, betas=(0.9, 0.98),
    ),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        custom_keys={name: dict(use_fallback=True) for name in ("patch_embed", "conv_seg", "layers.3")}
    ),
)  # fmt: skip
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1200, end=2400),
]
run = dict(log_every=25, max_bad=0)
