# 160k iterations at a global batch of 16 (published: 8 GPUs × 2 crops), linear warm-up, then linear decay to 0.
_base_ = "../../_base_/dense_adamw.py"
global_batch = 16
train_cfg = dict(max_iters=160000, val_interval=16000, save_steps=1000)
optim_wrapper = dict(optimizer=dict(lr=6e-5, weight_decay=0.01))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
