"""The native operators (arXiv 2112.12786, section 3): the Hadamard convolution; softmax over the taps, ghost head and
local aggregation; and linear layers."""

from .functional import backend_info, elsa_attention, hadamard_convolution
from .linear import linear, linear_info, mlp
from .neighbours import neighbour_products, neighbour_sums
from .portable import is_portable, portable

__all__ = [
    "backend_info",
    "elsa_attention",
    "hadamard_convolution",
    "is_portable",
    "linear",
    "linear_info",
    "mlp",
    "neighbour_products",
    "neighbour_sums",
    "portable",
]
