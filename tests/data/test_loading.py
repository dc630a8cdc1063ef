import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from mira.data import (
    BatchRequest,
    CropDataset,
    CropSettings,
    GlobalCrops,
    LocalCrops,
    UnreadablePicture,
    batch_indices,
    crop_loader,
    eval_loader,
    open_source,
    steps_per_epoch,
)
from mira.data.centre import centre_crop
from mira.data.order import shares
from mira.errors import WorkerDied

CHINA = load_sample_images().images[0]


class Noise:
    """Pictures of noise in different sizes; those in `bad` cannot be read."""

    name = "noise"
    labels = None
    classes: tuple[str, ...] = ()

    def __init__(self, count: int = 23, channels: int = 3, bad: tuple[int, ...] = ()) -> None:
        self.count, self.channels, self.bad = count, channels, bad

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"noise/{index}"

    def read(self, index: int) -> np.ndarray:
        if index in self.bad:
            raise UnreadablePicture(self.key(index), "too quiet")
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (*rng.integers(20, 60, 2), self.channels), np.uint8)


SMALL = CropSettings(global_crops=GlobalCrops(size=32), local_crops=LocalCrops(count=2, size=16))


def dataset(source=None, *, seed: int = 0, max_unreadable: float = 0.5) -> CropDataset:
    return CropDataset(source or Noise(), SMALL, seed=seed, max_unreadable=max_unreadable)


def run(source=None, *, seed: int = 0, first: int = 0, last: int = 7, workers: int = 0, **options):
    options = {"batch_size": 6, **options}
    data = dataset(source, seed=seed)
    return list(crop_loader(data, first_step=first, last_step=last, seed=seed, workers=workers, **options))


def same(one, other) -> bool:
    return (
        all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
        and torch.equal(one.indices, other.indices)
        and one.unreadable == other.unreadable
    )


def same_runs(one, other) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


def test_shapes_and_types():
    (batch,) = run(last=1)
    assert [tuple(view.shape) for view in batch.views] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 2
    assert all(view.dtype == torch.uint8 for view in batch.views)
    assert batch.indices.dtype == torch.int64
    assert batch.unreadable == ()


def test_each_epoch_is_a_permutation_without_the_rest():
    orders = []
    for epoch in range(4):
        steps = range(epoch * 3, epoch * 3 + 3)
        order = np.concatenate([batch_indices(23, 6, seed=5, step=step) for step in steps])
        assert len(set(order.tolist())) == 18
        assert set(order.tolist()) <= set(range(23))
        orders.append(order.tolist())
    assert len({tuple(order) for order in orders}) == 4
    assert batch_indices(23, 6, seed=6, step=0).tolist() != orders[0][:6]
    assert steps_per_epoch(23, 6) == 3


def test_permutations_are_uniform():
    """Every picture comes first equally often, over many epochs."""
    first = np.bincount([batch_indices(8, 8, seed=0, step=step)[0] for step in range(4000)], minlength=8)
    assert np.abs(first - 500).max() < 100


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 6])
def test_shards_in_rank_order_are_the_whole_batch(world):
    whole = run(last=4)
    parts = [run(last=4, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.indices, torch.cat([part[step].indices for part in parts]))
        for view in range(4):
            joined = torch.cat([part[step].views[view] for part in parts])
            assert torch.equal(batch.views[view], joined)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_part_of_a_batch_has_the_same_pictures_whatever_the_number_of_ranks(world, parts):
    whole = batch_indices(23, 11, seed=1, step=3)
    cut = [shares(11, rank=rank, world=world, parts=parts) for rank in range(world)]
    seen = [batch_indices(23, 11, seed=1, step=3, rank=rank, world=world, parts=parts) for rank in range(world)]
    for part in range(parts):
        (alone,) = [shares(11, parts=parts)[part]]
        together = [whole[own[part]] for own in cut]
        assert np.concatenate(together).tolist() == whole[alone].tolist()
        assert min(map(len, together)) >= max(map(len, together)) - 1
    for own, indices in zip(cut, seen, strict=True):
        assert indices.tolist() == np.concatenate([whole[share] for share in own]).tolist()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3")  # on machines with fewer cores
def test_same_bits_for_any_number_of_workers():
    alone = run(Noise(bad=(3, 4, 11)))
    for workers in (1, 2, 3):
        assert same_runs(alone, run(Noise(bad=(3, 4, 11)), workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_later_gives_the_tail_of_the_whole_run(workers):
    whole = run(last=8)
    for first in (1, 3, 5, 8):
        assert same_runs(whole[first:], run(first=first, last=8, workers=workers))


def test_crops_do_not_depend_on_the_company():
    data = dataset()
    together = data[BatchRequest(2, np.array([5, 9, 1, 17]))]
    for row, index in enumerate((5, 9, 1, 17)):
        alone = data[BatchRequest(2, np.array([index]))]
        for joint, single in zip(together.views, alone.views, strict=True):
            assert torch.equal(joint[row], single[0])


def test_epochs_seeds_views_and_pictures_get_different_crops():
    first = dataset()[BatchRequest(0, np.array([5]))].views
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[2], first[3])
    assert not torch.equal(first[0], dataset()[BatchRequest(1, np.array([5]))].views[0])
    assert not torch.equal(first[0], dataset(seed=1)[BatchRequest(0, np.array([5]))].views[0])


def test_an_unreadable_picture_is_replaced_by_the_next_with_the_numbers_of_the_place():
    data, broken = dataset(), dataset(Noise(bad=(21, 22)))
    request = BatchRequest(0, np.array([7, 21, 22, 3]))
    batch = broken[request]
    assert batch.indices.tolist() == [7, 0, 0, 3]
    assert batch.unreadable == ((21, "noise/21\ttoo quiet"), (22, "noise/22\ttoo quiet"))

    class Moved(Noise):
        def read(self, index: int) -> np.ndarray:
            return super().read(0)

    expected = dataset(Moved())[request]
    for view, whole, moved in zip(batch.views, data[request].views, expected.views, strict=True):
        assert torch.equal(view[[0, 3]], whole[[0, 3]])
        assert torch.equal(view[[1, 2]], moved[[1, 2]])


@pytest.mark.parametrize("workers", [0, 2])
def test_all_bad_is_one_sentence(workers):
    with pytest.raises(ValueError, match=r"in a row of noise cannot be read.*noise/\d+: too quiet") as raised:
        run(Noise(bad=tuple(range(23))), workers=workers)
    assert "Traceback" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_more_in_a_row_than_allowed_stops_and_fewer_do_not():
    data = CropDataset(Noise(count=40, bad=(1, 2, 3)), SMALL, seed=0, max_unreadable=0.05)
    with pytest.raises(ValueError, match="3 pictures in a row"):
        data[BatchRequest(0, np.array([1]))]
    assert data[BatchRequest(0, np.array([2]))].indices.tolist() == [4]


class Faulty(Noise):
    def read(self, index: int) -> np.ndarray:
        raise ZeroDivisionError("a fault of the program")


class Deadly(Noise):
    def read(self, index: int) -> np.ndarray:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_program_keeps_its_type_and_its_place(workers):
    with pytest.raises(ZeroDivisionError) as raised:
        run(Faulty(), workers=workers)
    assert str(raised.value) == "a fault of the program"
    assert "in read" in raised.value.__notes__[0]


def test_a_worker_that_dies_is_a_sentence():
    with pytest.raises(WorkerDied, match="a loader process died.*lack of memory"):
        run(Deadly(), workers=1)


def test_impossible_batches_are_refused_at_once():
    for options, words in (
        ({"batch_size": 24}, "batch_size is 24 but there are 23 pictures: lower batch_size to at most 23"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"world": 7}, "batch_size 6 cannot be shared by 7 processes: make it at least 7"),
        ({"world": 2, "parts": 4}, "batch_size 6 in 4 parts cannot be shared by 2 processes: make it at least 8"),
    ):
        arguments = {"batch_size": 6, **options}
        with pytest.raises(ValueError, match=words):
            crop_loader(dataset(), first_step=0, last_step=3, seed=0, **arguments)


def test_loading_leaves_the_process_as_it_was():
    """Neither the number of threads nor the global random state changes: training must not depend on loading."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run(last=2)
    run(last=2, workers=1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loader_can_be_gone_through_twice():
    loader = crop_loader(dataset(), batch_size=6, first_step=2, last_step=5, seed=0, workers=1)
    assert same_runs(list(loader), list(loader))
    assert len(loader) == 3


def test_grey_pictures():
    (batch,) = run(Noise(channels=1), last=1)
    assert batch.views[0].shape == (6, 1, 32, 32)


# Evaluation


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (64, 64), (41, 97), (300, 200)])
@pytest.mark.parametrize(("channels", "interpolation"), [(3, "bicubic"), (1, "bicubic"), (3, "bilinear")])
def test_centre_crop_is_resize_then_crop(shape, channels, interpolation):
    picture = np.ascontiguousarray(CHINA[100 : 100 + shape[0], 200 : 200 + shape[1], :channels])
    size, resize = 28, 32
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    short = min(shape)
    height, width = (int(resize * side / short) for side in shape)
    top, left = round((height - size) / 2), round((width - size) / 2)
    whole = image.resize((width, height), Image.Resampling[interpolation.upper()])
    expected = np.asarray(whole.crop((left, top, left + size, top + size))).reshape(size, size, channels)
    ours = centre_crop(picture, size=size, resize=resize, interpolation=interpolation)
    difference = np.abs(ours.astype(int) - expected.astype(int))
    # Pillow rounds between its two passes and goes first along the axis that is cheaper.
    assert difference.mean() <= 0.3
    assert difference.max() <= 2


def test_centre_crop_of_the_right_size_changes_nothing():
    picture = Noise().read(0)[:20, :20]
    assert np.array_equal(centre_crop(picture, size=20, resize=20), picture)


def test_centre_crop_of_a_very_long_picture():
    assert centre_crop(np.zeros((3, 60_000, 3), np.uint8), size=224, resize=256).shape == (224, 224, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_loader_goes_through_all_in_order_and_leaves_the_bad_out(workers):
    bad = (2, 8, 9, 10, 11, 22)
    batches = list(eval_loader(Noise(bad=bad), size=16, resize=18, batch_size=4, workers=workers))
    assert torch.cat([batch.indices for batch in batches]).tolist() == [i for i in range(23) if i not in bad]
    assert [entry[0] for batch in batches for entry in batch.unreadable] == list(bad)
    assert batches[0].unreadable == ((2, "noise/2\ttoo quiet"),)
    assert [len(batch.pictures) for batch in batches] == [3, 4, 0, 4, 4, 2]
    pictures = torch.cat([batch.pictures for batch in batches])
    expected = centre_crop(Noise().read(7), size=16, resize=18)
    assert np.array_equal(pictures[6].permute(1, 2, 0).numpy(), expected)


def test_eval_loader_of_grey_pictures_keeps_one_channel_even_without_rows():
    batches = list(eval_loader(Noise(channels=1, bad=(0, 1, 2, 3)), size=16, resize=16, batch_size=4))
    assert {batch.pictures.shape[1] for batch in batches} == {1}


def test_eval_loader_refuses_impossible_sizes():
    for size, resize, batch_size in ((20, 16, 4), (0, 16, 4), (16, 16, 0)):
        with pytest.raises(ValueError, match="1 <= size <= resize" if batch_size else "batch_size must be 1 or more"):
            eval_loader(Noise(), size=size, resize=resize, batch_size=batch_size)


@pytest.mark.slow
def test_works_where_processes_are_spawned(tmp_path):
    """As on macOS and Windows: everything a worker needs can be pickled."""
    script = tmp_path / "spawned.py"
    script.write_text(
        "import multiprocessing\n"
        "from mira.data import *\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    source = open_source('builtin:fashion', split='test', channels=1)\n"
        "    data = CropDataset(source, CropSettings(), seed=0, max_unreadable=0.0)\n"
        "    loader = crop_loader(data, batch_size=4, first_step=0, last_step=2, seed=0, workers=1)\n"
        "    print(sum(len(batch.indices) for batch in loader))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "8\n", done.stderr


def test_sources_of_the_package_go_through():
    source = open_source("builtin:fashion", split="test", channels=1)
    data = CropDataset(source, SMALL, seed=0, max_unreadable=0.0)
    (batch,) = crop_loader(data, batch_size=8, first_step=0, last_step=1, seed=0)
    assert batch.views[0].shape == (8, 1, 32, 32)
