"""Is a data set whole and as its loaders expect it? A check reads everything, changes nothing, and returns a report."""

from .ade20k import check_ade20k
from .coco import check_coco
from .imagenet import check_imagenet
from .report import Finding, Report

__all__ = ["Finding", "Report", "check_ade20k", "check_coco", "check_imagenet"]
