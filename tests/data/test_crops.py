import math
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

import mira._torchvision  # noqa: F401  (must come before torchvision)
from mira.data.crops import (
    DRAWS,
    RATIO,
    CropSettings,
    Draw,
    GlobalCrops,
    Jitter,
    LocalCrops,
    draw_box,
    draw_look,
)
from mira.data.uniforms import uniforms

from torchvision.transforms import ColorJitter, RandomResizedCrop  # isort: skip

SIZES = [(375, 500), (500, 375), (224, 224), (64, 640), (640, 64)]


def boxes(height: int, width: int, scale: tuple[float, float], n: int = 4000) -> np.ndarray:
    u = uniforms(1, np.arange(n), draws=DRAWS).tolist()
    return np.array([draw_box(row, height=height, width=width, scale=scale) for row in u])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [(0.14, 1.0), (0.05, 0.14)])
def test_boxes_follow_the_law_of_random_resized_crop(size, scale):
    height, width = size
    ours = boxes(height, width, scale)
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(picture, list(scale), list(RATIO)) for _ in range(len(ours))])
    for part in range(4):
        assert stats.ks_2samp(ours[:, part], theirs[:, part]).pvalue > 1e-3
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)]
    assert stats.ks_2samp(*areas).pvalue > 1e-3


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    scale=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted).map(tuple),
    index=st.integers(0, 10**6),
)
def test_a_box_lies_within_its_picture(height, width, scale, index):
    box = draw_box(uniforms(0, index, draws=DRAWS).tolist(), height=height, width=width, scale=scale)
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


def test_a_picture_too_long_for_any_try_gives_its_centre():
    assert draw_box([0.999] * DRAWS, height=30, width=3000, scale=(1.0, 1.0)) == (0, 1480, 30, 40)
    assert draw_box([0.999] * DRAWS, height=3000, width=30, scale=(1.0, 1.0)) == (1480, 0, 40, 30)


def test_the_whole_picture_can_be_chosen():
    u = [0.5] * DRAWS  # the log-uniform ratio's middle is 1
    assert draw_box(u, height=50, width=50, scale=(1.0, 1.0)) == (0, 0, 50, 50)


def looks(crop_settings: CropSettings, view: int, n: int = 6000, colour: bool = True):
    u = uniforms(2, np.arange(n), draws=DRAWS).tolist()
    return [draw_look(row, crop_settings.views[view], colour=colour) for row in u]


def test_operations_happen_as_often_as_the_settings_say():
    crop_settings = CropSettings(local_crops=LocalCrops(count=1, blur=0.5))
    expected = {0: (1.0, 0.0), 1: (0.1, 0.2), 2: (0.5, 0.0)}
    for view, (blur, solarise) in expected.items():
        drawn = looks(crop_settings, view)
        for share, probability in (
            (np.mean([bool(look.jitter) for look in drawn]), 0.8),
            (np.mean([look.flip for look in drawn]), 0.5),
            (np.mean([look.grey for look in drawn]), 0.2),
            (np.mean([look.sigma > 0 for look in drawn]), blur),
            (np.mean([look.solarise for look in drawn]), solarise),
        ):
            assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / len(drawn))
    sigmas = [look.sigma for look in looks(crop_settings, 0)]
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_jitter_follows_the_law_of_color_jitter():
    drawn = [look.jitter for look in looks(CropSettings(jitter=Jitter(probability=1)), 0)]
    orders = Counter(tuple(operation for operation, _ in jitter) for jitter in drawn)
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3
    torch.manual_seed(0)
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    theirs = np.array(
        [
            ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)[1:]
            for _ in range(len(drawn))
        ]
    )
    for column, operation in enumerate(("brightness", "contrast", "saturation", "hue")):
        ours = [dict(jitter)[operation] for jitter in drawn]
        assert stats.ks_2samp(ours, theirs[:, column]).pvalue > 1e-3


def test_factors_and_order_are_independent():
    drawn = [look.jitter for look in looks(CropSettings(jitter=Jitter(probability=1)), 0)]
    table = np.array([[dict(jitter)["brightness"], dict(jitter)["hue"], jitter[0][0] == "hue"] for jitter in drawn])
    correlations = np.corrcoef(table.T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(len(drawn))


def test_grey_pictures_keep_only_what_has_a_meaning_for_them():
    for look in looks(CropSettings(), 1, n=500, colour=False):
        assert {operation for operation, _ in look.jitter} <= {"brightness", "contrast"}
        assert not look.grey


def test_an_operation_of_no_strength_is_left_out():
    crop_settings = CropSettings(jitter=Jitter(probability=1, hue=0, contrast=0))
    for look in looks(crop_settings, 0, n=50):
        assert {operation for operation, _ in look.jitter} == {"brightness", "saturation"}


def test_every_draw_has_its_own_number():
    fixed = [draw.value for draw in Draw]
    assert sorted(set(fixed)) == list(range(Draw.RATIO + 1))
    assert DRAWS == Draw.AREA + 20


def test_views_are_two_global_ones_then_the_local_ones():
    crop_settings = CropSettings(global_crops=GlobalCrops(size=160), local_crops=LocalCrops(count=3, size=64))
    assert [view.size for view in crop_settings.views] == [160, 160, 64, 64, 64]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: GlobalCrops(scale=(0.5, 0.1)), "smallest and the largest share"),
        (lambda: GlobalCrops(scale=(0.0, 1.0)), "0 < smallest"),
        (lambda: LocalCrops(scale=(0.1, 1.5)), "largest <= 1"),
        (lambda: LocalCrops(count=-1), "greater than or equal to 0"),
        (lambda: Jitter(hue=0.7), "less than or equal to 0.5"),
        (lambda: CropSettings(blur_sigma=(2.0, 0.1)), "blur_sigma is the smallest"),
        (lambda: CropSettings(flip=1.2), "less than or equal to 1"),
        (lambda: CropSettings(flips=0.5), "Extra inputs are not permitted"),
    ],
)
def test_impossible_settings_are_refused_when_built(build, words):
    with pytest.raises(ValidationError, match=words):
        build()


def test_local_crops_larger_than_global_ones_are_warned_of_once_there_are_any() -> None:
    with pytest.warns(UserWarning, match=r"local crops \(200 pixels\) are larger than global ones \(64\)"):
        CropSettings(global_crops=GlobalCrops(size=64), local_crops=LocalCrops(count=2, size=200))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CropSettings(global_crops=GlobalCrops(size=64), local_crops=LocalCrops(count=0, size=200))
