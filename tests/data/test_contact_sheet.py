import numpy as np
import pytest
import torch
from PIL import Image

from mira.data.contact_sheet import write_first_batch_png
from mira.model import normalise

LEFT, TOP, GAP, NARROWEST = 20, 32, 4, 48


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("sizes", "zoom"), [((32, 32, 16), 4), ((128, 48), 1)])
def test_the_png_shows_every_pixel_of_every_crop_and_names_the_columns(tmp_path, channels, sizes, zoom):
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    generator = torch.Generator().manual_seed(0)
    views = [torch.randint(256, (5, channels, side, side), generator=generator, dtype=torch.uint8) for side in sizes]
    path = tmp_path / "new" / "crops.png"
    write_first_batch_png(path, [normalise(view, mean, std) for view in views], mean, std, pictures=3)
    sheet = np.asarray(Image.open(path))
    large = zoom * max(sizes)
    assert large >= 112  # readable
    assert sheet.shape == (TOP + 3 * (large + GAP), LEFT + sum(zoom * side + GAP for side in sizes), 3)
    left = LEFT
    for view in views:
        side = zoom * view.shape[-1]
        assert (sheet[:TOP, left : left + NARROWEST] < 128).any()  # its title
        for row in range(3):
            top = TOP + row * (large + GAP)
            expected = view[row].permute(1, 2, 0).expand(-1, -1, 3).numpy().repeat(zoom, 0).repeat(zoom, 1)
            assert np.array_equal(sheet[top : top + side, left : left + side], expected)
            assert (sheet[top : top + 16, :LEFT] < 128).any()  # its number
            assert (sheet[top + side : top + large + GAP, left : left + side] == 255).all()  # below a small crop
        left += side + GAP


def test_fewer_pictures_than_rows_and_columns_narrower_than_their_titles(tmp_path):
    views = [torch.zeros(2, 3, side, side) for side in (64, 8, 8)]
    write_first_batch_png(tmp_path / "crops.png", views, (0.5,) * 3, (0.5,) * 3)
    sheet = np.asarray(Image.open(tmp_path / "crops.png"))
    last = LEFT + 128 + GAP + NARROWEST + GAP
    assert sheet.shape == (TOP + 2 * (128 + GAP), last + NARROWEST + GAP, 3)
    assert (sheet[TOP, last : last + 16] == 128).all()
    assert (sheet[TOP, last - 8 : last] == 255).all()
