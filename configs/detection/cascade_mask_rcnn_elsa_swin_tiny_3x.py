# Cascade Mask R-CNN, ELSA-Swin-T, 3x: published box / mask AP 51.0 / 44.2.
_base_ = ["_base_/cascade_mask_rcnn.py", "_base_/coco.py", "_base_/schedule_3x.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="elsa_swin_tiny", pretrained="weights/elsa_swin_tiny.pth.tar"))
