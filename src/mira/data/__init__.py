"""Pictures: where they come from, how they are decoded and cropped, and how they reach the model."""

from mira.data.centre import EvalBatch, eval_loader
from mira.data.crops import CropSettings, GlobalCrops, Jitter, LocalCrops
from mira.data.decoding import UnreadablePicture
from mira.data.loading import Batch, CropDataset, crop_loader
from mira.data.order import BatchRequest, batch_indices, steps_per_epoch
from mira.data.sources import Identified, PictureSource, open_source, pretraining_split
from mira.data.subset import PictureSubset

__all__ = [
    "Batch",
    "BatchRequest",
    "CropDataset",
    "CropSettings",
    "EvalBatch",
    "GlobalCrops",
    "Identified",
    "Jitter",
    "LocalCrops",
    "PictureSource",
    "PictureSubset",
    "UnreadablePicture",
    "batch_indices",
    "crop_loader",
    "eval_loader",
    "open_source",
    "pretraining_split",
    "steps_per_epoch",
]
