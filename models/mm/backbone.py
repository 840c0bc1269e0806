"""The ELSA networks as backbones of mmdet and mmseg: ``DenseBackbone`` in mmengine's registry."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from ..pretrained import LoadReport, load_backbone
from ..registry import VARIANTS, SwinSpec
from ..swin import ELSASwinMaps, SwinStages
from ..volo import ELSAVOLO, ELSAVOLOMaps

# The paper's baselines: the same trunk with shifted windows in every stage.
WINDOWED = {name.removeprefix("elsa_"): name for name, spec in VARIANTS.items() if isinstance(spec, SwinSpec)}


class Pretrained:
    """A network of maps that starts from a checkpoint when mmengine initialises the model, once per training."""

    pretrained: str | None = None
    trust: bool = False  # whether that file may run pickled code
    load_report: LoadReport | None = None

    def init_weights(self) -> None:
        """Called by mmengine before a training; evaluation needs no pretrained file."""
        if self.pretrained:
            self.load_report = load_backbone(self, self.pretrained, self.trust)


class SwinBackbone(Pretrained, ELSASwinMaps):
    """ELSASwinMaps for mmengine."""


class VOLOBackbone(Pretrained, ELSAVOLOMaps):
    """ELSAVOLOMaps for mmengine."""


@MODELS.register_module()
def DenseBackbone(  # a factory with a class's name: mmengine builds it by that
    variant: str = "elsa_swin_tiny",
    out_indices: Sequence[int] = (0, 1, 2, 3),
    frozen_stages: int = -1,
    drop_path_rate: float = 0.2,
    with_cp: bool = False,
    pretrained: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    init_cfg: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A backbone: images (B, 3, H, W) of any size → maps (B, C_i, ⌈H/s⌉, ⌈W/s⌉), s = 4 · 2^i, one per out index.

    ELSA-Swin's state-dict names are those of the released detectors and segmentors (``layers.0…``, ``norm0…``).

    Args:
        variant: a name of VARIANTS, or that name without ``elsa_`` for the Swin Transformer that it is compared with.
        out_indices: stages whose maps are returned.
        frozen_stages: −1 none; 0 freezes the embedding, n also the first n stages.
        drop_path_rate: published .2 for detection, .3 for segmentation.
        with_cp: recompute each block in backward (activation checkpointing).
        pretrained: a classification checkpoint to start from, or a detector's or segmentor's, whose backbone is taken.
        model_args: overrides of the variant's arguments, e.g. ``{"ape": True}``; see SwinStages and ELSAVOLO.
        init_cfg: ``dict(type="Pretrained", checkpoint=…)``, mmengine's way to say ``pretrained``.

    Raises:
        ValueError: an unknown variant or argument; the message has the nearest name.
    """
    if init_cfg is not None:
        if init_cfg.get("type") != "Pretrained" or pretrained:
            raise ValueError(
                f"init_cfg must be dict(type='Pretrained', checkpoint=…), without pretrained; got {init_cfg}"
            )
        pretrained = init_cfg["checkpoint"]
    names = [*VARIANTS, *WINDOWED]
    if variant not in names:
        near = difflib.get_close_matches(str(variant), names, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(names)}"
        raise ValueError(f"variant {variant!r} is not known{hint}")
    spec = VARIANTS[WINDOWED.get(variant, variant)]
    is_swin = isinstance(spec, SwinSpec)
    network = SwinBackbone if is_swin else VOLOBackbone
    arguments = {**asdict(spec), "drop_path_rate": drop_path_rate}
    if variant in WINDOWED and isinstance(spec, SwinSpec):
        arguments["attention"] = ("window",) * len(spec.depths)
    known = {*inspect.signature(SwinStages if is_swin else ELSAVOLO).parameters, *(["shift_small_maps"] * is_swin)}
    for name in model_args or {}:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"model_args: {name!r} is no argument of {variant}" + (f"; did you mean {near[0]}?" if near else "")
            )
    arguments.update(model_args or {})
    backbone = network(out_indices=out_indices, frozen_stages=frozen_stages, **arguments)
    backbone.pretrained = pretrained
    backbone.set_grad_checkpointing(with_cp)
    return backbone
