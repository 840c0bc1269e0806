"""The version, in the one place that pip and ``elsa --version`` read."""

__version__ = "0.2.0"
