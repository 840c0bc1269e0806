# Boxes alone: _base_/cascade_mask_rcnn.py without masks.
_base_ = "cascade_mask_rcnn.py"
model = dict(roi_head=dict(mask_head=None, mask_roi_extractor=None))
