# Faster R-CNN, ELSA-Swin-T, 1x: boxes alone. The paper has none; the recipe is that of Mask R-CNN.
_base_ = ["_base_/faster_rcnn.py", "_base_/coco_boxes.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="elsa_swin_tiny", pretrained="weights/elsa_swin_tiny.pth.tar"))
