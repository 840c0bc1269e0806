# What the detectors share: the backbone, RoIs in float32, and proposals as mmdet 2.11 had them.
_base_ = "../../_base_/dense_backbone.py"
neck = dict(in_channels=[96, 192, 384, 768])
roi_extractor = dict(type="Float32RoIExtractor")
# mmdet 2.11, which trained the released models, kept proposals without area.
training_proposals = dict(rpn_proposal=dict(min_bbox_size=-1))
test_proposals = dict(rpn=dict(min_bbox_size=-1))
