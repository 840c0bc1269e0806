# The backbone of detectors and segmentors, with every argument that --set can reach; see elsa.models.mm.
backbone = dict(
    _delete_=True,
    type="DenseBackbone",
    variant="elsa_swin_tiny",
    out_indices=(0, 1, 2, 3),
    frozen_stages=-1,
    drop_path_rate=0.2,
    with_cp=False,
    pretrained=None,
    model_args=dict(),
)
