# What the detectors share: the backbone, RoIs in float32, and proposals as mmdet 2.11 had them.
backbone = dict(
    _delete_=True,
    type="DenseBackbone",
    variant="elsa_swin_tiny",
    out_indices=(0, 1, 2, 3),
    frozen_stages=-1,
    drop_path_rate=0.2,
    with_cp=False,
    pretrained=None,
    model_args=dict(),
)
neck = dict(in_channels=[96, 192, 384, 768])
roi_extractor = dict(type="Float32RoIExtractor")
# mmdet 2.11, which trained the released models, kept proposals without area.
training_proposals = dict(rpn_proposal=dict(min_bbox_size=-1))
test_proposals = dict(rpn=dict(min_bbox_size=-1))
