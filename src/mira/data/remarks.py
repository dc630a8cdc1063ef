"""What a person should know about pictures before anything is learned from them: found by looking at some."""

import io
from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mira.data.decoding import FORMATS, UnreadablePicture
from mira.data.folder import left_out
from mira.data.sources import EncodedSource, PictureSource
from mira.data.subset import to_choose_from
from mira.wording import counted

_SAMPLE = 24

_PAGES = "a TIFF of several pages, of which only the first is used: save every page as a file of its own"
_FOUR = (
    "a TIFF of four channels, the fourth of which is taken for transparency over white: save three of them, or each "
    "channel as a grayscale image"
)
_TWELVE = "an image of 16 bits whose values need 12: they are scaled by 4095, those of other images by 65535"
_NARROW = (
    "a TIFF or 16-bit image that uses less than a tenth of the range from black to white: stretch them to 8 bits first"
)


def remarks(source: PictureSource) -> list[str]:
    """Sentences on files that are left out, and on what is odd about some pictures that are looked at."""
    sentences = [sentence] if (sentence := left_out(source)) else []
    if not isinstance(source, EncodedSource):
        return sentences
    count = to_choose_from(source, _SAMPLE)
    found: Counter[str] = Counter()
    first: dict[str, str] = {}
    looked = 0
    for index in np.unique(np.linspace(0, count - 1, _SAMPLE).astype(int)).tolist():
        try:
            odd = list(_oddities(source, index))
        except UnreadablePicture:
            continue  # is named where it is met
        looked += 1
        for kind in odd:
            found[kind] += 1
            first.setdefault(kind, source.key(index))
    for kind, number in found.items():
        sentences.append(
            f"of {counted(looked, 'image')} looked at, {number} ({first[kind]} is the first): each is {kind}"
        )
    return sentences


def _oddities(source: EncodedSource, index: int) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(source.encoded(index)), formats=FORMATS) as image:
            mode, tiff, pages = image.mode, image.format == "TIFF", 1
            if tiff:
                pages = getattr(image, "n_frames", 1)
    except UnreadablePicture:
        raise
    except Exception as error:  # Pillow raises almost anything on damaged input
        raise UnreadablePicture("", str(error)) from error
    if tiff and pages > 1:
        yield _PAGES
    if tiff and mode in ("RGBA", "RGBX"):
        yield _FOUR
    if not tiff and not mode.startswith("I;16"):
        return
    assert isinstance(source, PictureSource)
    picture = source.read(index)
    if int(picture.max()) - int(picture.min()) < 26:
        yield _NARROW
    if mode.startswith("I;16"):
        with Image.open(io.BytesIO(source.encoded(index)), formats=FORMATS) as image:
            highest = float(np.max(image.getextrema()))
        if 0 < highest < 2**12:
            yield _TWELVE
