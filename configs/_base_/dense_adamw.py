# AdamW under native mixed precision. Of what the published recipes spare from weight decay (absolute_pos_embed,
# relative_position_bias_table, norm) the models have norms alone: the position bias is named rb, and is decayed.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale="dynamic",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
)
