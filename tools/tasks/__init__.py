"""How each verb is done for each task: classification, detection, segmentation."""
