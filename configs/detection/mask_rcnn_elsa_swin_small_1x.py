# Mask R-CNN, ELSA-Swin-S, 1x: published box / mask AP 48.3 / 43.0.
_base_ = ["_base_/mask_rcnn.py", "_base_/coco.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="elsa_swin_small", pretrained="weights/elsa_swin_small.pth.tar"))
