# Our backbones, data sets and optimizers in mmengine's registries, for mmseg.
_base_ = "../../_base_/dense_runtime.py"
custom_imports = dict(
    imports=[
        *("elsa.models.mm", "elsa.data.mm.loaders", "elsa.data.mm.maps"),
        "elsa.tools.tasks.mm.optim",
    ],
    allow_failed_imports=False,
)
default_scope = "mmseg"
run = dict(metric="single_scale/mIoU")
visualizer = dict(type="SegLocalVisualizer")  # for mm's own inferencers
