# UPerNet with an FCN auxiliary head on an ELSA-Swin backbone.
_base_ = ["mmseg::_base_/models/upernet_swin.py", "../../_base_/dense_backbone.py"]
model = dict(
    data_preprocessor=dict(size=(512, 512)),  # training crops; images to be evaluated are not padded
    backbone=_base_.backbone,
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
    test_cfg=dict(mode="whole", crop_size=(512, 512), stride=(341, 341)),  # the latter two for mode="slide"
)
