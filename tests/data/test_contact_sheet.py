import numpy as np
import pytest
import torch
from PIL import Image

from mira.data.contact_sheet import write_first_batch_png
from mira.model import normalise


@pytest.mark.parametrize("channels", [3, 1])
def test_the_png_shows_every_crop_as_it_was(tmp_path, channels):
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    generator = torch.Generator().manual_seed(0)
    views = [
        torch.randint(256, (5, channels, side, side), generator=generator, dtype=torch.uint8) for side in (32, 32, 16)
    ]
    path = tmp_path / "new" / "crops.png"
    write_first_batch_png(path, [normalise(view, mean, std) for view in views], mean, std, pictures=3)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (3 * 36 + 4, 36 + 36 + 20 + 4, 3)
    for row in range(3):
        for view, left in zip(views, (4, 40, 76), strict=True):
            side, top = view.shape[-1], 4 + 36 * row
            expected = view[row].permute(1, 2, 0).expand(-1, -1, 3).numpy()
            assert np.array_equal(sheet[top : top + side, left : left + side], expected)
    assert (sheet[:4] == 255).all()
    assert (sheet[4 + 16 : 36, 76:92] == 255).all()  # below a small crop


def test_fewer_pictures_than_rows(tmp_path):
    write_first_batch_png(tmp_path / "crops.png", [torch.zeros(2, 3, 8, 8)], (0.5,) * 3, (0.5,) * 3)
    assert Image.open(tmp_path / "crops.png").size == (16, 28)
