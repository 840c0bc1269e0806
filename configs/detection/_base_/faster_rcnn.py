# Boxes alone: Mask R-CNN of _base_/mask_rcnn.py without masks, which is Faster R-CNN.
_base_ = "mask_rcnn.py"
model = dict(type="FasterRCNN", roi_head=dict(mask_head=None, mask_roi_extractor=None))
