"""Detection and segmentation transfer: fine-tune a detector from the backbone, score it by average precision."""

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from mira.data import UnreadablePicture
from mira.data.workers import BatchLoader
from mira.evaluation.detection.data import DetectionSet
from mira.evaluation.detection.model import build_detector
from mira.evaluation.detection.scoring import average_precision, encode_masks, require_pycocotools
from mira.evaluation.detection.settings import DetectionSettings, SegmentationSettings
from mira.evaluation.detection.training import Examples, train_detector
from mira.evaluation.digest import source_digest
from mira.evaluation.saved_state import SavedState
from mira.evaluation.subject import Compute, Score, Subject

Kind = Literal["bbox", "segm"]


def evaluate_detection(
    subject: Subject,
    train: DetectionSet,
    test: DetectionSet,
    settings: DetectionSettings,
    *,
    seed: int,
    compute: Compute,
    folder: Path | None = None,
    save_every: int = 1000,
) -> list[Score]:
    """Box AP, AP50 and AP75 of a Faster R-CNN that starts from a copy of the backbone.

    Args:
        seed: of the new layers, the order, the flips and all that torchvision draws.
        folder: where the training's state is kept, so that it can go on after an interruption; none is kept without.
            It stays there after the last step, for whoever keeps the scores to remove: until then, the same call
            only measures.
        save_every: steps from one writing of it to the next.

    Raises:
        ValueError: the backbone has no stages, the data are damaged, float16 was asked for, or pycocotools is missing.
    """
    return _evaluate(subject, train, test, settings, ("bbox",), seed, compute, folder, save_every)


def evaluate_segmentation(
    subject: Subject,
    train: DetectionSet,
    test: DetectionSet,
    settings: SegmentationSettings,
    *,
    seed: int,
    compute: Compute,
    folder: Path | None = None,
    save_every: int = 1000,
) -> list[Score]:
    """AP, AP50 and AP75 of the boxes and of the masks of a Mask R-CNN; otherwise as `evaluate_detection`."""
    return _evaluate(subject, train, test, settings, ("bbox", "segm"), seed, compute, folder, save_every)


def _evaluate(
    subject: Subject,
    train: DetectionSet,
    test: DetectionSet,
    settings: DetectionSettings,
    kinds: tuple[Kind, ...],
    seed: int,
    compute: Compute,
    folder: Path | None,
    save_every: int,
) -> list[Score]:
    require_pycocotools()  # not after a day of training
    masks = "segm" in kinds
    if compute.precision == "float16":
        raise ValueError("a detector cannot be trained in float16, whose gradients vanish: choose bfloat16 or float32.")
    if train.category_ids != test.category_ids or train.classes != test.classes:
        raise ValueError(
            f"{train.origin} and {test.origin} have different categories ({len(train.classes)} and "
            f"{len(test.classes)}): use two parts of one data set."
        )
    model = build_detector(
        subject.backbone,
        subject.preprocessing,
        len(train.classes),
        settings,
        masks=masks,
        dtype=torch.bfloat16 if compute.precision == "bfloat16" else torch.float32,
        seed=seed,
    )
    examples = Examples(train, batch_size=settings.batch_size, seed=seed, masks=masks)
    # The objects, and not only the names of the pictures, decide what is learned; and so does the precision.
    part = f"{source_digest(train)} {compute.precision}"
    state = SavedState(folder, "segmentation" if masks else "detection", settings, subject, train, seed, part)
    train_detector(
        model,
        examples,
        settings,
        seed=seed,
        device=compute.device,
        workers=compute.workers,
        state=state,
        save_every=save_every,
        report=lambda step: compute.report(f"{subject.name}, training", step, settings.iterations),
    )
    found, readable = _detect(model, test, kinds, compute, subject.name)
    values: dict[str, Any] = {
        "detector": "Mask R-CNN, FPN" if masks else "Faster R-CNN, FPN",
        "train": train.name,
        "rules": test.rules,
        **settings.model_dump(mode="json"),
    }
    return [
        Score(
            metric=f"{'box' if kind == 'bbox' else 'mask'} {metric}",
            value=value,
            settings=values,
            train_size=len(examples),
            test_size=len(readable),
            note="" if value is not None else f"{test.name} has no object to find.",
        )
        for kind in kinds
        for metric, value in average_precision(
            test.content, found[kind], kind, rules=test.rules, pictures=readable
        ).items()
    ]


@torch.inference_mode()
def _detect(
    model: nn.Module, test: DetectionSet, kinds: tuple[Kind, ...], compute: Compute, name: str
) -> tuple[dict[Kind, list[dict[str, Any]]], set[int]]:
    """What is found on the test pictures, one at a time, in COCO's format; and the ids of those that can be read."""
    model.eval()
    found: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    ids: set[int] = set()
    loader = BatchLoader(_TestPictures(test), range(len(test)), workers=compute.workers)
    for index, readable in enumerate(loader):
        if not readable:
            compute.unreadable.add((test.name, test.key(index)))
            continue
        (picture,) = readable
        output = model([picture.to(compute.device).float().div_(255)])[0]
        image = test.content["images"][index]["id"]
        ids.add(image)
        common = [
            {"image_id": image, "category_id": test.category_ids[label - 1], "score": score}
            for label, score in zip(output["labels"].tolist(), output["scores"].tolist(), strict=True)
        ]
        boxes = output["boxes"].cpu()
        boxes[:, 2:] -= boxes[:, :2]
        found["bbox"] += [{**one, "bbox": box} for one, box in zip(common, boxes.tolist(), strict=True)]
        if "segm" in kinds:
            outlines = encode_masks((output["masks"][:, 0] > 0.5).byte().cpu().numpy())
            found["segm"] += [{**one, "segmentation": own} for one, own in zip(common, outlines, strict=True)]
        compute.report(f"{name}, {test.name}", index + 1, len(test))
    return found, ids


class _TestPictures(Dataset[list[UInt8[Tensor, "C H W"]]]):
    """Each test picture alone, or nothing in place of one that cannot be read."""

    def __init__(self, test: DetectionSet) -> None:
        self._test = test

    def __getitem__(self, index: int) -> list[UInt8[Tensor, "C H W"]]:
        try:
            return [torch.from_numpy(self._test.read(index)).permute(2, 0, 1)]
        except UnreadablePicture:
            return []
