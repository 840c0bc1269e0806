# What every detection run shares: our backbones, loop and records in mmengine's registries.
custom_imports = dict(
    imports=["elsa.models.dense", "elsa.models.dense_roi", "elsa.data.dense_coco", "elsa.engine.dense"],
    allow_failed_imports=False,
)
default_scope = "mmdet"
# Log lines, checkpoints and TensorBoard come from RunRecords.
default_hooks = dict(logger=None, checkpoint=None, timer=None)
custom_hooks = [dict(type="RunRecords", metric="coco/bbox_mAP", every=50, max_bad=100)]
visualizer = dict(type="DetLocalVisualizer", vis_backends=[])
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
log_level = "WARNING"
randomness = dict(seed=0)
