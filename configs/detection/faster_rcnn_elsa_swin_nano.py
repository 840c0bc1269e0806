# Faster R-CNN with slim heads on the smallest backbone, for first tries and machines without GPU; nothing published.
_base_ = ["_base_/faster_rcnn_nano.py", "_base_/coco_boxes.py", "_base_/schedule_nano.py", "_base_/runtime.py"]
train_dataloader = dict(aspect_group=None)
