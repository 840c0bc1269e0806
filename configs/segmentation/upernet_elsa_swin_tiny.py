# UPerNet, ELSA-Swin-T, 160k iterations: published mIoU, multi-scale + flip, 47.9.
_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
model = dict(backbone=dict(variant="elsa_swin_tiny", drop_path_rate=0.3, pretrained="weights/elsa_swin_tiny.pth.tar"))
