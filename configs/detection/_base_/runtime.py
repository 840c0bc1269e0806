# Our backbones, data sets, loop and records in mmengine's registries, for mmdet.
_base_ = "../../_base_/dense_runtime.py"
custom_imports = dict(
    imports=[
        *("elsa.models.dense", "elsa.models.dense_roi", "elsa.data.dense_coco"),
        *("elsa.engine.dense", "elsa.engine.dense_optim"),
    ],
    allow_failed_imports=False,
)
default_scope = "mmdet"
custom_hooks = [dict(type="RunRecords", metric="coco/bbox_mAP", every=50, max_bad=100)]
visualizer = dict(type="DetLocalVisualizer", vis_backends=[])
