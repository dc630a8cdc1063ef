"""Small sources of pictures that the tests draw themselves."""

import numpy as np

from mira.data import UnreadablePicture


class DrawnSource:
    """Pictures of bars: the class is their slope, everything else is chance. Chosen ones cannot be read."""

    def __init__(self, count: int, *, seed: int = 0, channels: int = 1, side: int = 16, broken: tuple[int, ...] = ()):
        generator = np.random.default_rng(seed)
        self.name = f"drawn:{seed}"
        self.classes = ("flat", "steep", "rising", "falling")
        self.labels: np.ndarray | None = generator.integers(0, 4, count)
        self.reads: list[int] = []
        self._broken = broken
        y, x = np.mgrid[:side, :side]
        along = np.stack([y, x, (x - y) / 1.4, (x + y) / 1.4])[self.labels]
        phase = generator.uniform(0, 2 * np.pi, (count, 1, 1))
        noise = generator.normal(0, 20, (count, side, side))
        grey = (127 + 90 * np.sin(1.3 * along + phase) + noise).clip(0, 255).astype(np.uint8)
        self._pictures = np.repeat(grey[..., None], channels, axis=3)

    def __len__(self) -> int:
        return len(self._pictures)

    def key(self, index: int) -> str:
        return f"bars/{index}.png"

    def read(self, index: int) -> np.ndarray:
        self.reads.append(index)
        if index in self._broken:
            raise UnreadablePicture(self.key(index), "truncated")
        return self._pictures[index]
