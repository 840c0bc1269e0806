# UPerNet, ELSA-Swin-S, 160k iterations: published mIoU, multi-scale + flip, 50.4.
_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="elsa_swin_small", drop_path_rate=0.3, pretrained="weights/elsa_swin_small.pth.tar"))
