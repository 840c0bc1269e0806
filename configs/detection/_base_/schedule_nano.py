# For the smallest backbone: as 1x, at a global batch of 4 with the learning rate of the digits' recipe.
_base_ = "schedule_1x.py"
global_batch = 4
optim_wrapper = dict(optimizer=dict(lr=1e-3))
