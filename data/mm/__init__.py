"""Data sets of detection and segmentation in mmengine's registries, and their loaders."""
