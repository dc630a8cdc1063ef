"""VOC2007's rules of what counts as found (Everingham et al. 2010, section 4.2), told to pycocotools.

They differ from COCO's in three things:

- what is found goes to the object that it overlaps most, and is a mistake where that one was found before, even if it
  overlaps another one enough;
- what goes to a difficult object counts neither for nor against, and that object need not be found;
- precision is averaged over 11 points of recall, 0, 0.1, ..., 1, and not over 101.
"""

from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class VocEval(COCOeval):  # type: ignore[misc]  # pycocotools has no types
    """COCOeval by VOC's rules, over annotations that say whether they are `difficult`.

    A crowd of COCO is what VOC's difficult object is: it may be found any number of times and does not count. Only the
    overlap with it is another one, the share of the detection that lies within.
    """

    def __init__(self, truth: COCO, found: COCO, kind: str) -> None:
        super().__init__(truth, found, kind)
        self.params.recThrs = np.arange(11) / 10

    def _prepare(self) -> None:
        for one in self.cocoGt.dataset["annotations"]:
            one["iscrowd"] = int(one["difficult"])
        super()._prepare()

    def computeIoU(self, image: np.int64, category: np.int64) -> Any:
        """Overlaps [detections by falling score, objects] with everything but each detection's best put to 0."""
        objects = self._gts[image, category]
        for one in objects:
            one["iscrowd"] = 0
        overlaps = super().computeIoU(image, category)
        for one in objects:
            one["iscrowd"] = int(one["difficult"])
        if objects and len(overlaps):
            overlaps[np.arange(len(objects)) != overlaps.argmax(axis=1)[:, None]] = 0
        return overlaps
