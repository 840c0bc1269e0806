# Our backbones, data sets and optimizers in mmengine's registries, for mmdet.
_base_ = "../../_base_/dense_runtime.py"
custom_imports = dict(
    imports=[
        *("elsa.models.mm", "elsa.models.mm.roi", "elsa.data.mm.loaders", "elsa.data.mm.coco"),
        "elsa.tools.tasks.mm.optim",
    ],
    allow_failed_imports=False,
)
default_scope = "mmdet"
run = dict(metric="coco/bbox_mAP")
visualizer = dict(type="DetLocalVisualizer")  # for mm's own inferencers
