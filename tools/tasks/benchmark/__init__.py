"""What is measured: the operator beside others, and the loading of data beside the model."""

from .options import OneLineParser
from .shapes import DEFAULT_GROUPS, GROUPS
from .verbs import add_data, add_model, add_operator, add_parts, add_scaling, add_step

VERBS = (add_operator, add_model, add_parts, add_scaling, add_data, add_step)

__all__ = ["DEFAULT_GROUPS", "GROUPS", "VERBS", "OneLineParser"]
