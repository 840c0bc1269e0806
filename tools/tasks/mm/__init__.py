"""What detection and segmentation share: mmengine's configurations, registries, schedules and evaluators."""
