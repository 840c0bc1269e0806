"""The ELSA operator: softmax over the taps, ghost head, local aggregation (arXiv 2112.12786, section 3)."""

from .functional import backend_info, elsa_attention
from .linear import linear, linear_info, mlp

__all__ = ["backend_info", "elsa_attention", "linear", "linear_info", "mlp"]
