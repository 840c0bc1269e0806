"""Is a data set whole and as its loaders expect it? A check reads everything, changes nothing, and returns a report."""

from .ade20k import MapPlace, check_ade20k
from .coco import CocoPlace, check_coco
from .imagenet import check_imagenet
from .lists import check_lists
from .report import Finding, Report

__all__ = [
    "CocoPlace",
    "Finding",
    "MapPlace",
    "Report",
    "check_ade20k",
    "check_coco",
    "check_imagenet",
    "check_lists",
]
