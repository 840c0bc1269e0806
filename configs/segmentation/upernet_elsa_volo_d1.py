# UPerNet, ELSA-VOLO-D1, 160k iterations: not in the paper; its two strides are completed to four.
_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(variant="elsa_volo_d1", drop_path_rate=0.3, pretrained="weights/elsa_volo_d1.safetensors"),
    decode_head=dict(in_channels=[192, 192, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
