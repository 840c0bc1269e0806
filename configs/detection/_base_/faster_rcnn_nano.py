# Boxes alone: _base_/mask_rcnn_nano.py without masks.
_base_ = "mask_rcnn_nano.py"
model = dict(type="FasterRCNN", roi_head=dict(mask_head=None, mask_roi_extractor=None))
