# What digits-detector is: half the nano network's width, three stages of ELSA and slimmer heads, trained for twice as
# long. First: elsa train digits_elsa_swin_pico --output runs/pico
_base_ = "mask_rcnn_elsa_swin_nano_digits.py"
_pico = dict(embed_dim=16, depths=(1, 1, 2), num_heads=(1, 2, 4), attention=("elsa",) * 3)
model = dict(
    backbone=dict(model_args=_pico, out_indices=(0, 1, 2), pretrained="runs/pico/last.safetensors"),
    neck=dict(in_channels=[16, 32, 64], out_channels=48),
    rpn_head=dict(in_channels=48, feat_channels=48),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48),
        bbox_head=dict(in_channels=48, fc_out_channels=128),
        mask_roi_extractor=dict(out_channels=48),
        mask_head=dict(in_channels=48, conv_out_channels=48),
    ),
)
train_cfg = dict(max_epochs=16, val_interval=8)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=16, milestones=[13, 15], gamma=0.2),
]
