"""Weights that a training of a detector or segmentor starts from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from elsa.core import ConfigError, logger, seed_everything
from elsa.models import load_pretrained, read_checkpoint
from elsa.models.pretrained import select_weights

from ..checkpoints import class_names
from .session import mistakes_named


def initialise(model: nn.Module, config: Config, classes: Sequence[str], trust: bool) -> None:
    """Fresh weights; then those of ``pretrained``, a whole detector or segmentor, but for ``pretrained_ignore``, or
    those of ``model.backbone.pretrained``.

    Args:
        trust: whether these files may run pickled code.

    Raises:
        ConfigError: what was learned of other classes would be loaded; the message has the patterns that leave it out.
        CheckpointError: a file that cannot be read or does not fit.
    """
    backbone, whole = getattr(model, "backbone", None), config.get("pretrained")
    if whole and getattr(backbone, "pretrained", None):
        logger.info("pretrained %s has a backbone: %s is not read", whole, backbone.pretrained)
        backbone.pretrained = None
    if backbone is not None:
        backbone.trust = trust
    with mistakes_named("model"):
        seed_everything(config.randomness.seed, "weights")  # whatever has drawn numbers since the model was built
        model.init_weights()
    if report := getattr(backbone, "load_report", None):
        logger.info("backbone from %s: %s", config.model.backbone.pretrained, report)
    if whole:
        content, ignore = read_checkpoint(whole, trust), list(config.get("pretrained_ignore") or ())
        _check_classes(model, config, content, list(classes), ignore)
        logger.info("%s: %s", whole, load_pretrained(model, content, ignore=ignore))


def _check_classes(
    model: nn.Module, config: Config, content: Mapping[str, Any], classes: list[str], ignore: list[str]
) -> None:
    _, tensors = select_weights(dict(content))
    own, theirs = model.state_dict(), class_names(content)
    other = {name for name, value in own.items() if name in tensors and tensors[name].shape != value.shape}
    if not other and (not theirs or theirs == classes):
        return
    of_classes = _shaped_by_classes(config, own)
    if theirs == classes or not (theirs or other & of_classes):
        return  # what does not fit has another reason
    left = [name for name in own if name in of_classes and not any(fnmatchcase(name, one) for one in ignore)]
    if left:
        patterns = list(dict.fromkeys(f"{name.rpartition('.')[0]}.*" for name in left))
        known = f"{len(theirs)} classes ({_some(theirs)})" if theirs else "other classes"
        raise ConfigError(
            f"pretrained {config.pretrained} has {known}, the data {len(classes)} ({_some(classes)}): what was learned "
            f"of them is left out with pretrained_ignore = {[*ignore, *patterns]}"
        )


def _shaped_by_classes(config: Config, own: Mapping[str, Any]) -> set[str]:
    """The tensors whose shape depends on the number of classes."""
    settings = copy.deepcopy(config.model)

    def one_more(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "num_classes":
                node[key] = value + 1
            elif isinstance(value, (dict, list)):
                one_more(value)

    one_more(settings)
    with mistakes_named("model"):
        larger = MODELS.build(settings).state_dict()
    return {name for name, value in own.items() if name in larger and larger[name].shape != value.shape}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)
