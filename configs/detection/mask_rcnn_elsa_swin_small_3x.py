# Mask R-CNN, ELSA-Swin-S, 3x: published box / mask AP 49.2 / 43.6.
_base_ = ["_base_/mask_rcnn.py", "_base_/coco.py", "_base_/schedule_3x.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="elsa_swin_small", pretrained="weights/elsa_swin_small.pth.tar"))
