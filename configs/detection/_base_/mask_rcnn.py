# Mask R-CNN with FPN on an ELSA-Swin backbone; heads as in mmdet's standard configuration.
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "elsa_swin.py"]
model = dict(
    backbone=_base_.backbone,
    neck=_base_.neck,
    roi_head=dict(bbox_roi_extractor=_base_.roi_extractor, mask_roi_extractor=_base_.roi_extractor),
    train_cfg=_base_.training_proposals,
    test_cfg=_base_.test_proposals,
)
