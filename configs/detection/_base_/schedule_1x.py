# 12 epochs at a global batch of 16 (published: 8 GPUs × 2 images); the learning rate belongs to that batch.
_base_ = "../../_base_/dense_adamw.py"
global_batch = 16
train_cfg = dict(max_epochs=12, val_interval=1, save_steps=1000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
