"""Detection and segmentation transfer: a detector that starts from the backbone, scored by average precision."""

from mira.evaluation.detection.data import DetectionSet, open_detection, read_coco, read_voc

__all__ = ["DetectionSet", "open_detection", "read_coco", "read_voc"]
