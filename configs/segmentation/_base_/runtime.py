# Our backbones, data sets, loop and records in mmengine's registries, for mmseg.
_base_ = "../../_base_/dense_runtime.py"
custom_imports = dict(
    imports=[
        *("elsa.models.dense", "elsa.models.dense_loss", "elsa.data.dense", "elsa.data.dense_ade"),
        *("elsa.engine.dense", "elsa.engine.dense_optim"),
    ],
    allow_failed_imports=False,
)
default_scope = "mmseg"
custom_hooks = [dict(type="RunRecords", metric="single_scale/mIoU", every=50, max_bad=100)]
visualizer = dict(type="SegLocalVisualizer", vis_backends=[])
