# What every dense run shares: what is logged, how many images may be unreadable, the weights' moving average.
run = dict(log_every=50, max_bad=100, ema_decay=None)
randomness = dict(seed=0)
embedded = dict()  # data to write where data_root is not there: type (digits-coco, digits-ade), train, val, seed
