# UPerNet with slim heads on the smallest backbone.
_base_ = "upernet.py"
model = dict(
    backbone=dict(variant="elsa_swin_nano", drop_path_rate=0.0),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, dropout_ratio=0.0),
    auxiliary_head=dict(in_channels=128, channels=64, dropout_ratio=0.0),
)
