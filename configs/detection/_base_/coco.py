# COCO 2017 with the multi-scale policy of DETR, for both schedules.
data_root = "datasets/coco/"
image_orientation = "turned"  # as people see them; "stored": annotations disregard what a camera notes (EXIF)
image = dict(type="LoadImageFromFile")
labels = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
short_sides = [(side, 1333) for side in range(480, 801, 32)]
train_pipeline = [
    image,
    labels,
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomChoice",
        transforms=[
            [dict(type="RandomChoiceResize", scales=short_sides, keep_ratio=True)],
            [
                dict(type="RandomChoiceResize", scales=[(400, 4200), (500, 4200), (600, 4200)], keep_ratio=True),
                dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
                dict(type="RandomChoiceResize", scales=short_sides, keep_ratio=True),
            ],
        ],
    ),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    image,
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    labels,
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    aspect_group=2,  # images of like orientation that go together; published: 2 on each of 8 GPUs
    dataset=dict(
        type="SeededDataset",
        dataset=dict(
            type="CheckedCocoDataset",
            data_root=data_root,
            ann_file="annotations/instances_train2017.json",
            data_prefix=dict(img="train2017/"),
            metainfo=dict(),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type="CheckedCocoDataset",
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        metainfo=dict(),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric",
    ann_file=data_root + "annotations/instances_val2017.json",
    metric=["bbox", "segm"],
    classwise=False,
)
test_evaluator = val_evaluator
