# What digits-segmentor is: half the nano network's width, three stages of ELSA and slimmer heads, trained for twice as
# long. First: elsa train digits_elsa_swin_pico --output runs/pico
_base_ = "upernet_elsa_swin_nano_digits.py"
_pico = dict(embed_dim=16, depths=(1, 1, 2), num_heads=(1, 2, 4), attention=("elsa",) * 3)
model = dict(
    backbone=dict(model_args=_pico, out_indices=(0, 1, 2), pretrained="runs/pico/last.safetensors"),
    decode_head=dict(in_channels=[16, 32, 64], in_index=[0, 1, 2], channels=32),
    auxiliary_head=dict(in_channels=64, channels=32),
)
_adamw = {name: dict(use_fallback=True) for name in ("patch_embed", "conv_seg")}
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, custom_keys=_adamw))
train_cfg = dict(max_iters=4800, val_interval=1200)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=2400, end=4800),
]
