"""The state of a long evaluation, kept between epochs so that a stopped one goes on."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from mira.data import PictureSource
from mira.evaluation.subject import Subject
from mira.files import atomic_path
from mira.model.weights import read_torch_file
from mira.settings import Settings


class SavedState:
    """One file in a folder, named after all that decides what is trained; nothing without a folder.

    Other settings, weights, pictures, labels or another seed have another name. Precision is not part
    of it: a folder is for one.

    Args:
        folder: where it lies; None keeps nothing.
        protocol: begins the name.
        settings, subject, pictures, seed: what decides the training.
        part: tells apart several trainings of one protocol.
    """

    def __init__(
        self,
        folder: Path | None,
        protocol: str,
        settings: Settings,
        subject: Subject,
        pictures: PictureSource,
        seed: int,
        part: str = "",
    ) -> None:
        self.path: Path | None = None
        if folder is not None:
            state = hashlib.blake2b(digest_size=8)
            for text in (settings.model_dump_json(), subject.weights, repr(subject.preprocessing), str(seed), part):
                state.update(text.encode() + b"\0")
            state.update(f"{pictures.name}\0{pictures.classes}\0".encode("utf-8", "surrogateescape"))
            state.update(b"" if pictures.labels is None else pictures.labels.tobytes())
            for index in range(len(pictures)):
                state.update(os.fsencode(pictures.key(index)) + b"\0")
            self.path = folder / f"{protocol}-{state.hexdigest()}.pt"

    def read(self) -> dict[str, Any] | None:
        """What was written last; None where nothing was, or, with a warning, where it is damaged."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            return read_torch_file(self.path)
        except ValueError as error:
            warnings.warn(f"{error}. Starting this evaluation anew", stacklevel=2)
            return None

    def write(self, content: dict[str, Any]) -> None:
        """Put tensors and plain values in the place of what was there."""
        if self.path is not None:
            try:
                with atomic_path(self.path) as temporary:
                    torch.save(content, temporary)
            except (OSError, RuntimeError) as error:  # torch.save reports a full disk as the latter
                warnings.warn(f"how far the evaluation is cannot be kept: {error}", stacklevel=2)
