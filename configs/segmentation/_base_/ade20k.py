# ADE20K: 150 classes, crops of 512×512; evaluated on whole images with a short side of 512.
data_root = "datasets/ADEChallengeData2016/"
image_orientation = "turned"  # as people see them; "stored": annotations disregard what a camera notes (EXIF)
image = dict(type="LoadImageFromFile")
labels = dict(type="LoadCheckedAnnotations")
train_pipeline = [
    image,
    labels,
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [image, dict(type="Resize", scale=(2048, 512), keep_ratio=True), labels, dict(type="PackSegInputs")]
# The paper's numbers are of six scales, each also mirrored; the ratios are of the single scale above, as in mmseg 0.11.
scales = [(int(2048 * ratio), int(512 * ratio)) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
tta_pipeline = [
    image,
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=scale, keep_ratio=True) for scale in scales],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [labels],
            [dict(type="PackSegInputs")],
        ],
    ),
]
tta_model = dict(type="SegTTAModel")
train_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type="SeededDataset",
        dataset=dict(
            type="CheckedADE20KDataset",
            data_root=data_root,
            data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
            metainfo=dict(),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type="CheckedADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        metainfo=dict(),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ClasswiseIoUMetric", iou_metrics=["mIoU"], prefix="single_scale")
test_evaluator = val_evaluator
