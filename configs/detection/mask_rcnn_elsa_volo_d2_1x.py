# Mask R-CNN, ELSA-VOLO-D2, 1x: not in the paper; its two strides are completed to four (see elsa.models.volo).
_base_ = ["_base_/mask_rcnn.py", "_base_/coco.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(variant="elsa_volo_d2", pretrained="weights/elsa_volo_d2.safetensors"),
    neck=dict(in_channels=[256, 256, 512, 512]),
)
