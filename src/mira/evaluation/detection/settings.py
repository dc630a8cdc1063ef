"""The values of the detection and segmentation protocols."""

from typing import Annotated, Literal

from pydantic import Field

from mira.settings import Settings

Pixels = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class DetectionSettings(Settings):
    """Faster R-CNN on VOC07+12: the schedule and sizes of MoCo (arXiv 1911.05722, section 4.2 and its published
    configuration pascal_voc_R_50_C4_24k), on torchvision's feature pyramid instead of detectron2's C4 head."""

    iterations: int = Field(24_000, ge=0, description="steps of training")
    batch_size: int = Field(16, ge=1, description="pictures to a step; batch normalisation is over all of them")
    learning_rate: float = Field(0.02, gt=0, description="after the warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="of all weights but those of normalisation layers")
    warmup: int = Field(100, ge=0, description="steps in which the learning rate rises from a thousandth")
    drops: tuple[Share, ...] = Field(
        (18 / 24, 22 / 24), description="shares of the iterations after which the learning rate is a tenth"
    )
    train_sizes: tuple[Pixels, ...] = Field(
        tuple(range(480, 801, 32)), min_length=1, description="short sides of training pictures, drawn for each"
    )
    test_size: int = Field(800, ge=1, description="short side of test pictures")
    longest: int = Field(1333, ge=1, description="long side at most")
    normalisation: Literal["batch", "frozen"] = Field(
        "batch",
        description="batch: trained, and new in the pyramid, as MoCo does; frozen: the backbone's as pretrained",
    )
    precise_batches: int = Field(
        200, ge=0, description="steps whose statistics replace the running ones of batch normalisation at the end"
    )
    anchors: tuple[Pixels, ...] = Field(
        (32, 64, 128, 256, 512), min_length=5, max_length=5, description="sides of anchors, one a level of the pyramid"
    )
    pyramid_width: int = Field(256, ge=1, description="channels of the feature pyramid")
    head_width: int = Field(1024, ge=1, description="width of the two layers that judge a box")
    boxes_per_picture: int = Field(512, ge=1, description="boxes of a picture that the head learns from")


class SegmentationSettings(DetectionSettings):
    """Mask R-CNN on COCO: detectron2's 1x schedule (Base-RCNN-FPN), by which MoCo and its successors are compared."""

    iterations: int = Field(90_000, ge=0, description="steps of training")
    warmup: int = Field(1_000, ge=0, description="steps in which the learning rate rises from a thousandth")
    drops: tuple[Share, ...] = Field(
        (6 / 9, 8 / 9), description="shares of the iterations after which the learning rate is a tenth"
    )
    train_sizes: tuple[Pixels, ...] = Field(
        tuple(range(640, 801, 32)), min_length=1, description="short sides of training pictures, drawn for each"
    )
