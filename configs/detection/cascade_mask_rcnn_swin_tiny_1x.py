# Cascade Mask R-CNN, Swin-T, 1x: the paper's baseline, under the same recipe.
_base_ = ["_base_/cascade_mask_rcnn.py", "_base_/coco.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="swin_tiny", pretrained="weights/swin_tiny.pth.tar"))
