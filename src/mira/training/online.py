"""The k-NN accuracy that is shown while training, where the pictures have labels."""

import numpy as np
import torch
from torch import nn

from mira.data import PictureSource
from mira.data.subset import PictureSubset, to_choose_from
from mira.evaluation.features import extract_features
from mira.evaluation.knn import knn_accuracy
from mira.model import Preprocessing

K = 20
TEMPERATURE = 0.07
QUERY_SHARE = 0.2


class OnlineKnn:
    """Weighted k-NN of a fixed part of the training pictures against another; percent.

    It follows a run; it is not a test accuracy, which `mira evaluate knn` gives. Labels are used here alone.

    Args:
        source: labelled pictures.
        preprocessing: of the backbone.
        pictures: at most so many take part, evenly spread over the source (but see `to_choose_from`); a fifth of
            them are the queries.
        device: where the backbone is.
        precision: of the forward pass.

    Raises:
        ValueError: too few labelled pictures, or all of one class.
    """

    def __init__(
        self,
        source: PictureSource,
        preprocessing: Preprocessing,
        *,
        pictures: int,
        device: torch.device,
        precision: str,
    ) -> None:
        generator = np.random.default_rng(0)
        chosen = np.sort(generator.permutation(to_choose_from(source, pictures))[:pictures])
        self._subset = PictureSubset(source, chosen)
        self._queries = torch.from_numpy(generator.random(len(chosen)) < QUERY_SHARE)
        if source.labels is None:
            raise ValueError("the pictures have no labels")
        bank = source.labels[chosen][~self._queries.numpy()]
        if len(np.unique(bank)) < 2 or not self._queries.any():
            raise ValueError("it needs labelled pictures of two classes or more, and a few of them")
        self._preprocessing, self._device, self._precision = preprocessing, device, precision

    def __call__(self, backbone: nn.Module) -> float:
        """Accuracy of the backbone's features as they are now; the backbone is left as it was."""
        found = extract_features(
            backbone,
            self._subset,
            preprocessing=self._preprocessing,
            device=self._device,
            precision="bfloat16" if self._precision == "bfloat16" else "float32",
        )
        assert found.labels is not None
        queries = self._queries[found.indices]
        bank = found.features[~queries]
        k = min(K, len(bank))
        accuracy = knn_accuracy(
            bank,
            found.labels[~queries],
            found.features[queries],
            found.labels[queries],
            k=[k],
            temperature=TEMPERATURE,
        )
        return accuracy[k]
