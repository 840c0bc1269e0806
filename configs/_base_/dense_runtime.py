# What every dense run shares. Log lines, checkpoints and TensorBoard come from RunRecords.
default_hooks = dict(logger=None, checkpoint=None, timer=None)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
log_level = "WARNING"
randomness = dict(seed=0)
embedded = dict()  # data to write where data_root is not there: type (digits-coco, digits-ade), train, val, seed
