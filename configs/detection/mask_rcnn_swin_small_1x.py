# Mask R-CNN, Swin-S, 1x: the paper's baseline, under the same recipe.
_base_ = ["_base_/mask_rcnn.py", "_base_/coco.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="swin_small", pretrained="weights/swin_small.pth.tar"))
