# Mask R-CNN with slim heads on the smallest backbone, for first tries and machines without GPU; nothing published.
_base_ = ["_base_/mask_rcnn_nano.py", "_base_/coco.py", "_base_/schedule_nano.py", "_base_/runtime.py"]
train_dataloader = dict(aspect_group=None)
