# What every dense run shares: what is logged, how many images may be unreadable, the weights' moving average.
run = dict(log_every=50, max_bad=100, ema_decay=None)
randomness = dict(seed=0)
embedded = dict()  # data to draw where root is data_root: type (digits-coco, digits-ade), root, train, val, seed
pretrained = None  # a whole detector or segmentor to start from; else model.backbone.pretrained, a backbone
pretrained_ignore = []  # patterns of its tensors that are left out: ["roi_head.bbox_head.fc_cls.*", …]
