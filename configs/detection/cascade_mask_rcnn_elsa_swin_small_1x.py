# Cascade Mask R-CNN, ELSA-Swin-S, 1x: published box / mask AP 51.6 / 44.4.
_base_ = ["_base_/cascade_mask_rcnn.py", "_base_/coco.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="elsa_swin_small", pretrained="weights/elsa_swin_small.pth.tar"))
