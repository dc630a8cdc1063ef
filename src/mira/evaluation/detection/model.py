"""Detectors with a pretrained backbone as their start: torchvision's Faster and Mask R-CNN over a feature pyramid."""

from collections import OrderedDict
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import mira._torchvision  # isort: skip  (must come before torchvision)
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mira.evaluation.detection.settings import DetectionSettings
from mira.model.preprocessing import Preprocessing

LEVELS = 4  # stages of the backbone that the pyramid stands on
_BOX_CELLS = 7  # a box's features are pooled to 7 x 7


class Pyramid(nn.Module):
    """The last four stages of a backbone, joined to maps of one width by a feature pyramid (Lin et al. 2017).

    Args:
        backbone: an architecture of timm with stages of falling resolution.
        stages: which of its maps, and the channels of each.
        width: channels of the pyramid.
        normalise: whether the pyramid's convolutions have batch normalisation.
        dtype: of the forward pass; torch.float32, or what autocast is to use.
    """

    def __init__(
        self, backbone: nn.Module, stages: dict[int, int], *, width: int, normalise: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.body: Any = backbone  # with timm's forward_intermediates
        self.fpn = FeaturePyramidNetwork(
            list(stages.values()),
            width,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=nn.BatchNorm2d if normalise else None,
        )
        self.out_channels = width
        self._stages, self._dtype = list(stages), dtype

    def forward(self, pictures: Float[Tensor, "B C H W"]) -> dict[str, Tensor]:
        """Maps by name, the finest first, in float32."""
        with torch.autocast(pictures.device.type, dtype=self._dtype, enabled=self._dtype is not torch.float32):
            maps = self.body.forward_intermediates(pictures, indices=self._stages, intermediates_only=True)
            joined = self.fpn(OrderedDict((str(level), one) for level, one in enumerate(maps)))
        return {name: one.float() for name, one in joined.items()}


def build_detector(
    backbone: nn.Module,
    preprocessing: Preprocessing,
    classes: int,
    settings: DetectionSettings,
    *,
    masks: bool,
    dtype: torch.dtype,
    seed: int,
) -> nn.Module:
    """Faster R-CNN, or Mask R-CNN where `masks`, that starts from a copy of a backbone.

    Args:
        backbone: left as it is.
        preprocessing: its mean and std; sizes are those of the settings.
        classes: categories, the background not counted.
        masks: whether it finds masks as well.
        dtype: of the backbone's and the pyramid's forward pass.
        seed: of the weights of all new layers.

    Raises:
        ValueError: the backbone has no stages of falling resolution.
    """
    mira._torchvision.complete_operators()
    backbone = deepcopy(backbone).cpu()
    stages = find_stages(backbone, preprocessing.channels)
    backbone.requires_grad_(True)
    width, head = settings.pyramid_width, settings.head_width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pyramid = Pyramid(backbone, stages, width=width, normalise=settings.normalisation == "batch", dtype=dtype)
        common = {
            "min_size": settings.train_sizes,
            "max_size": settings.longest,
            "image_mean": preprocessing.mean,
            "image_std": preprocessing.std,
            "rpn_anchor_generator": AnchorGenerator(
                tuple((size,) for size in settings.anchors), ((0.5, 1.0, 2.0),) * len(settings.anchors)
            ),
            "rpn_post_nms_top_n_train": 1000,  # the rest as torchvision has it, which is what detectron2 has
            "box_head": TwoMLPHead(width * _BOX_CELLS**2, head),
            "box_predictor": FastRCNNPredictor(head, classes + 1),
            "box_batch_size_per_image": settings.boxes_per_picture,
        }
        if masks:
            common["mask_head"] = MaskRCNNHeads(width, (width,) * 4, 1)
            common["mask_predictor"] = MaskRCNNPredictor(width, width, classes + 1)
        model: nn.Module = (MaskRCNN if masks else FasterRCNN)(pyramid, **common)
    return model


def find_stages(backbone: nn.Module, channels: int) -> dict[int, int]:
    """The last four maps of a backbone, and the channels of each.

    Raises:
        ValueError: it does not give them, or their resolution does not fall from each to the next.
    """
    kind = type(backbone).__name__
    if not hasattr(backbone, "forward_intermediates"):
        raise ValueError(
            f"{kind} gives no maps of its stages: detection needs an architecture of timm with `forward_intermediates`."
        )
    training = backbone.training
    try:
        with torch.no_grad():
            any_backbone: Any = backbone.eval()
            maps = any_backbone.forward_intermediates(torch.zeros(1, channels, 256, 256), intermediates_only=True)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{kind} does not take pictures of any size ({str(error).splitlines()[0]}): detection needs an "
            "architecture that does, such as a ResNet or a ConvNeXt."
        ) from error
    finally:
        backbone.train(training)
    sides = [one.shape[-1] for one in maps[-LEVELS:]]
    if len(sides) < LEVELS or any(later >= earlier for earlier, later in pairwise(sides)):
        raise ValueError(
            f"{kind} has no {LEVELS} stages of falling resolution (its maps have sides {', '.join(map(str, sides))}): "
            "detection needs an architecture with such stages, a ResNet or a ConvNeXt for example, and no plain ViT."
        )
    return {number: maps[number].shape[1] for number in range(len(maps) - LEVELS, len(maps))}
