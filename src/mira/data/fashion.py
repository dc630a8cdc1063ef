"""The embedded set: 12,000 pictures of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT licence, Zalando SE)."""

from importlib.resources import files

import numpy as np
from jaxtyping import Int64, UInt8

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class FashionSource:
    """Ten kinds of garments in 28 x 28 grey: the first 10,000 training and 2,000 test pictures of the set."""

    name = "builtin:fashion"
    classes: tuple[str, ...] = CLASSES

    def __init__(self, *, split: str, channels: int) -> None:
        """Load the pictures of "train", "test" or "all" into memory (at most 9.4 MB)."""
        self.channels = channels
        self._splits: tuple[str, ...] = ("train", "test") if split == "all" else (split,)
        with files("mira.data").joinpath("builtin/fashion.npz").open("rb") as file, np.load(file) as arrays:
            self._pictures: UInt8[np.ndarray, "N H W"] = np.concatenate(
                [arrays[f"{name}_pictures"] for name in self._splits]
            )
            labels = [arrays[f"{name}_labels"] for name in self._splits]
        self._first = len(labels[0])
        self.labels: Int64[np.ndarray, " N"] | None = np.concatenate(labels).astype(np.int64)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._pictures)

    def key(self, index: int) -> str:
        """The split and the number within it, as in "test/17"."""
        if index < self._first:
            return f"{self._splits[0]}/{index}"
        return f"{self._splits[1]}/{index - self._first}"

    def identity(self) -> str:
        """The set never changes: its parts and channels."""
        return f"{self.name} {self._splits} {self.channels}"

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """One picture; grey is repeated where three channels are asked for."""
        return np.stack([self._pictures[index]] * self.channels, axis=2)
