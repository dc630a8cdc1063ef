"""The batched augmentation: each operation is torchvision's on the same parameters, and the chain is the workers'."""

import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

import mira._torchvision  # noqa: F401  (must come before torchvision)
from mira.data import BatchRequest, CropDataset, CropSettings, GlobalCrops, Jitter, LocalCrops
from mira.data import augment as on_workers
from mira.data.crops import DRAWS, Look, ViewSettings, draw_look
from mira.data.device_augment import DeviceAugment, augment, blur, turn_hue
from mira.data.look_rows import look_rows
from mira.data.uniforms import uniforms
from mira.model import normalise

from torchvision.transforms.v2 import functional as tv  # isort: skip

CHINA, FLOWER = (torch.from_numpy(x.copy()).permute(2, 0, 1) for x in load_sample_images().images)
PICTURES = torch.stack([CHINA[:, 60:284, 200:424], FLOWER[:, 100:324, 200:424]])
EVERYTHING = CropSettings(global_crops=GlobalCrops(blur=(1.0, 1.0), solarise=(0.5, 0.5)))
PLAIN = Look(flip=False, jitter=(), grey=False, sigma=0.0, solarise=False)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def view(settings: CropSettings = EVERYTHING) -> ViewSettings:
    return settings.views[0]


def ours(pictures: torch.Tensor, *looks: Look, settings: CropSettings = EVERYTHING) -> torch.Tensor:
    looks = looks if len(looks) == len(pictures) else looks * len(pictures)
    return augment(pictures, torch.from_numpy(look_rows(looks)), view(settings))


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one.float() - other.float()).abs().mean())


@pytest.mark.parametrize(
    ("operation", "factors"),
    [
        ("brightness", (0.0, 0.6, 0.93, 1.4, 2.5)),
        ("contrast", (0.0, 0.6, 0.93, 1.4, 2.5)),
        ("saturation", (0.0, 0.8, 1.2, 2.0)),
        ("hue", (-0.5, -0.1, -0.004, 0.0, 0.03, 0.1, 0.5)),
    ],
)
def test_colour_is_torchvisions(operation, factors):
    """In floating point exactly; on 8 bits, where torchvision cuts decimals off several times, to one grey level."""
    theirs = getattr(tv, f"adjust_{operation}")
    for factor in factors:
        result = ours(PICTURES, PLAIN._replace(jitter=((operation, factor),)))
        for row, picture in zip(result, PICTURES, strict=True):
            assert (row - 255 * theirs(picture / 255, factor)).abs().max() < 0.05  # its luma's weights are rounded
            assert difference(row.round(), theirs(picture, factor)) <= 1


@pytest.mark.parametrize("channels", [3, 1])
def test_blur_is_torchvisions_and_each_picture_has_its_own(channels):
    pictures = PICTURES[:, :channels].float()
    for sigmas in ((0.1, 0.5), (0.8, 1.2), (1.7, 2.0)):
        blurred = blur(pictures, torch.tensor(sigmas), max_sigma=2.0)
        for row, picture, sigma in zip(blurred, pictures, sigmas, strict=True):
            assert (row - tv.gaussian_blur(picture, [13, 13], [sigma, sigma])).abs().max() < 0.01
    assert torch.equal(blur(pictures, torch.zeros(2), max_sigma=2.0), pictures)


def test_blur_of_a_picture_smaller_than_its_kernel():
    assert blur(PICTURES[..., :5, :5].float(), torch.tensor([2.0, 1.0]), max_sigma=2.0).shape == (2, 3, 5, 5)


def test_flip_grey_and_solarise_are_torchvisions():
    for look, expected in (
        (PLAIN, PICTURES),
        (PLAIN._replace(flip=True), tv.horizontal_flip(PICTURES)),
        (PLAIN._replace(solarise=True), tv.solarize(PICTURES, 128)),
    ):
        assert torch.equal(ours(PICTURES, look).round(), expected.float())
    grey = 255 * tv.rgb_to_grayscale(PICTURES / 255, 3)
    assert (ours(PICTURES, PLAIN._replace(grey=True)) - grey).abs().max() < 0.1  # torchvision's weights are rounded


@pytest.mark.parametrize("order", list(itertools.permutations(("brightness", "contrast", "saturation", "hue"))))
def test_every_order_of_the_jitter_is_torchvisions_in_that_order(order):
    factors = {"brightness": 1.35, "contrast": 0.7, "saturation": 1.2, "hue": 0.08}
    expected = PICTURES / 255
    for operation in order:
        expected = torch.stack([getattr(tv, f"adjust_{operation}")(row, factors[operation]) for row in expected])
    result = ours(PICTURES, PLAIN._replace(jitter=tuple((name, factors[name]) for name in order)))
    assert (result - 255 * expected).abs().max() < 0.05


def drawn(settings: CropSettings, count: int, channels: int = 3) -> list[Look]:
    draws = uniforms(3, np.arange(count), draws=DRAWS).tolist()
    return [draw_look(u, view(settings), colour=channels == 3) for u in draws]


@pytest.mark.parametrize("space", ["hsv", "yiq"])
@pytest.mark.parametrize("channels", [3, 1])
def test_the_chain_is_that_of_the_workers(space, channels):
    settings = EVERYTHING.model_copy(update={"jitter": Jitter(hue_space=space)})
    looks = drawn(settings, 40, channels)
    crops = PICTURES[:, :channels, 50:114, 50:114].repeat(20, 1, 1, 1)
    result = ours(crops, *looks, settings=settings)
    differences = []
    for row, crop, look in zip(result, crops, looks, strict=True):
        picture = np.ascontiguousarray(crop.permute(1, 2, 0).numpy())
        expected = on_workers.apply(picture, look, max_sigma=2.0, hue_space=space)
        differences.append(difference(row, torch.from_numpy(expected).permute(2, 0, 1)))
    assert np.mean(differences) <= 0.7
    assert max(differences) <= 1.5  # the workers round to 8 bits after each operation


def test_a_picture_does_not_depend_on_its_company():
    looks = drawn(EVERYTHING, 12)
    crops = PICTURES[:, :, 50:114, 50:114].repeat(6, 1, 1, 1)
    together = ours(crops, *looks)
    for number in range(12):
        alone = ours(crops[number : number + 1], looks[number])
        assert (together[number] - alone[0]).abs().max() < 1e-2


def test_the_hue_in_yiq_is_another_augmentation_that_keeps_the_luma():
    pictures = PICTURES.float()
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for turn in (0.05, -0.1):
        turned = turn_hue(pictures, torch.full((2,), turn), space="yiq")
        inside = ((turned > 0) & (turned < 255)).all(1)
        lumas = [(weights * x).sum(1)[inside] for x in (pictures, turned)]
        assert (lumas[0] - lumas[1]).abs().max() < 0.01
        hsv = turn_hue(pictures, torch.full((2,), turn), space="hsv")
        other_way = turn_hue(pictures, torch.full((2,), -turn), space="yiq")
        assert 1 < difference(turned, hsv) < difference(other_way, hsv)


def test_what_the_settings_rule_out_is_not_computed():
    """A look that asks for it all the same shows it."""
    nothing = CropSettings(
        global_crops=GlobalCrops(blur=(0, 0), solarise=(0, 0)), flip=0, grey=0, jitter=Jitter(probability=0)
    )
    busy = Look(True, (("hue", 0.2), ("contrast", 0.5)), True, 2.0, True)
    assert torch.equal(ours(PICTURES, busy, settings=nothing), PICTURES.float())


class Photographs:
    name, labels, classes = "photographs", None, ()

    def __len__(self) -> int:
        return 8

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(PICTURES[index % 2, :, index : index + 150, :].permute(1, 2, 0).numpy())


SMALL = CropSettings(
    global_crops=GlobalCrops(size=64, blur=(1.0, 0.1)), local_crops=LocalCrops(count=2, size=32), blur_sigma=(0.1, 1.0)
)


def batches():
    request = BatchRequest(1, np.array([3, 0, 6, 1]))
    return [
        CropDataset(Photographs(), SMALL, seed=4, max_unreadable=0.0, augment=place)[request]
        for place in ("workers", "device")
    ]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_is_the_same_wherever_it_is_coloured(channels_last, dtype):
    coloured, cut = batches()
    assert coloured.looks == ()
    assert [len(rows) for rows in cut.looks] == [4] * 4
    to_device = DeviceAugment(SMALL, MEAN, STD, device=torch.device("cpu"), channels_last=channels_last, dtype=dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for one, other, plain in zip(to_device(coloured), to_device(cut), coloured.views, strict=True):
        assert one.dtype == other.dtype == dtype
        assert one.is_contiguous(memory_format=layout)
        assert other.is_contiguous(memory_format=layout)
        assert torch.equal(one, normalise(plain, MEAN, STD).to(dtype))
        assert difference(one, other) <= 1 / 255 / 0.224


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_it_gives_the_same():
    """In a process of its own: the type checks of the tests cannot be compiled."""
    script = """
import torch
from mira.data import CropSettings, GlobalCrops
from mira.data.device_augment import augment
from mira.data.look_rows import WIDTH
torch.manual_seed(0)
settings = CropSettings(global_crops=GlobalCrops(size=16))
pictures = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
rows = torch.rand(4, WIDTH)
compiled = torch.compile(augment, dynamic=False, fullgraph=True)
view = settings.views[1]  # the one with every operation
difference = compiled(pictures, rows, view) - augment(pictures, rows, view)
assert difference.abs().max() < 0.05, difference.abs().max()
print("same")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr


@pytest.mark.parametrize("number", [0, 1])  # coloured by the workers, or here
def test_a_batch_in_parts_has_the_bits_of_the_whole(number):
    batch = batches()[number]
    for dtype, channels_last in ((torch.float32, True), (torch.bfloat16, False)):
        kind = {"device": torch.device("cpu"), "dtype": dtype, "channels_last": channels_last}
        whole = DeviceAugment(SMALL, MEAN, STD, **kind)(batch)
        for parts in (2, 3):
            for one, other in zip(whole, DeviceAugment(SMALL, MEAN, STD, parts=parts, **kind)(batch), strict=True):
                assert torch.equal(one, other)
                assert one.stride() == other.stride()


@pytest.mark.gpu
def test_on_a_gpu_it_waits_for_nothing_and_gives_the_same():
    cut = batches()[1]
    on_cpu = DeviceAugment(SMALL, MEAN, STD, device=torch.device("cpu"))(cut)
    to_device = DeviceAugment(SMALL, MEAN, STD, device=torch.device("cuda"))
    pinned = cut._replace(
        views=tuple(view.pin_memory() for view in cut.views), looks=tuple(rows.pin_memory() for rows in cut.looks)
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = to_device(pinned)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert (one - other.cpu()).abs().max() < 0.02
