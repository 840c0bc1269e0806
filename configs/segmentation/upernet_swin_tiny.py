# UPerNet, Swin-T, 160k iterations: the paper's baseline, under the same recipe.
_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="swin_tiny", drop_path_rate=0.3, pretrained="weights/swin_tiny.pth.tar"))
