# UPerNet with slim heads on the smallest backbone, for first tries and machines without GPU; nothing published.
_base_ = ["_base_/upernet_nano.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
