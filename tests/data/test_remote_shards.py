"""Tar files on a real server: the same pictures as from the disk, each file fetched no more often than needed."""

import collections
import contextlib
import errno
import http.server
import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mira.data import CropDataset, CropSettings, GlobalCrops, batch_indices, crop_loader, open_source
from mira.data.mixing import ShardMixing, shard_mixing
from mira.data.order import Requests
from mira.data.remote_file import ShardUnavailable
from mira.data.sources import EncodedSource, Identified, PictureSource, ShardedSource, absolute_spec, pretraining_split
from mira.data.subset import to_choose_from
from mira.evaluation.labelled import check_room
from mira.files import exclusive
from mira.training import load_run, pretrain
from tests.data.test_shards import pixels, write_tar
from tests.tiny import TINY

SHARDS = 6
EACH = 10
SETTINGS = CropSettings(global_crops=GlobalCrops(size=16))


class Server:
    """A web server of a folder that counts what is asked for, and breaks off or refuses when told to."""

    def __init__(self, folder: Path) -> None:
        self.asked: collections.Counter[str] = collections.Counter()
        self.breaks = 0
        """How many answers end half-way."""
        self.says_length = True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                outer.asked[name] += 1
                path = folder / name
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                self.send_response(200)
                if outer.says_length:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if outer.breaks > 0:
                    outer.breaks -= 1
                    content = content[: len(content) // 2]
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRA_CACHE", str(tmp_path / "copies"))
    (tmp_path / "served").mkdir()
    for shard in range(SHARDS):
        write_tar(tmp_path / f"served/train-{shard:02}.tar", range(EACH * shard, EACH * (shard + 1)))
    server = Server(tmp_path / "served")
    yield server
    server.close()


def remote(server: Server) -> str:
    return f"{server.address}/train-{{00..05}}.tar"


def local(tmp_path: Path) -> str:
    return str(tmp_path / "served/train-{00..05}.tar")


def gigabytes(tmp_path: Path, shards: int) -> float:
    """Room for so many shards, the largest ones, and not for another."""
    sizes = sorted((path.stat().st_size for path in (tmp_path / "served").iterdir()), reverse=True)
    return (sum(sizes[:shards]) + 1000) / 2**30


def test_the_same_pictures_as_from_the_disk_and_every_file_fetched_once(server, tmp_path):
    here, there = open_source(local(tmp_path)), open_source(remote(server))
    for kind in (PictureSource, EncodedSource, Identified, ShardedSource):
        assert isinstance(there, kind)
    assert len(there) == SHARDS * EACH
    assert [there.key(index) for index in range(len(there))] == [here.key(index) for index in range(len(here))]
    assert there.labels.tolist() == here.labels.tolist()
    assert there.shard_of.tolist() == np.repeat(range(SHARDS), EACH).tolist()
    for index in (0, 59, 17, 31):
        assert np.array_equal(there.read(index), pixels(index))
    assert set(server.asked.values()) == {1}
    server.close()
    again = open_source(remote(server))  # what they hold has been noted, and the copies are there
    assert again.identity() == there.identity() != here.identity()
    assert np.array_equal(pickle.loads(pickle.dumps(again)).read(42), pixels(42))


def test_names_decide_the_split_and_addresses_stay_as_they_are(server, tmp_path):
    assert pretraining_split(remote(server)) == "train"
    assert absolute_spec(remote(server)) == remote(server)
    assert pretraining_split(f"{server.address}/part-0.tar") == "all"
    write_tar(tmp_path / "served/val-0.tar", range(5))
    assert len(open_source(f"{server.address}/{{train-00,val-0}}.tar", split="test")) == 5


def test_what_fsspec_knows_can_be_read_as_well(server, tmp_path):
    source = open_source(f"file://{tmp_path}/served/train-{{00..05}}.tar")
    assert np.array_equal(source.read(23), pixels(23))
    assert len(list((tmp_path / "copies/shards").glob("*.tar"))) == SHARDS
    with pytest.raises(ValueError, match="nowhere://x/a.tar cannot be opened: .*nowhere"):
        open_source("nowhere://x/a.tar")


class TestRoom:
    def test_copies_keep_to_the_limit_and_what_is_removed_is_fetched_again(self, server, tmp_path):
        limit = gigabytes(tmp_path, 2)
        source = open_source(remote(server), copies_gigabytes=limit)
        for index in np.random.default_rng(0).permutation(SHARDS * EACH):
            assert np.array_equal(source.read(int(index)), pixels(int(index)))
            assert sum(path.stat().st_size for path in (tmp_path / "copies/shards").glob("*.tar")) <= limit * 2**30
        assert sum(server.asked.values()) > SHARDS

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_run_in_groups_fetches_every_file_once_an_epoch_and_gives_the_same_crops(self, workers, server, tmp_path):
        batches = {}
        limit = gigabytes(tmp_path, 3)
        for name, spec in (("here", local(tmp_path)), ("there", remote(server))):
            source = open_source(spec, copies_gigabytes=limit)
            data = CropDataset(source, SETTINGS, seed=0, max_unreadable=0.0, mix_shards=1)
            server.asked.clear()
            # A group is more than the batches that workers hold ready, as in any real run.
            loader = crop_loader(data, batch_size=2, first_step=0, last_step=90, seed=3, workers=workers)
            batches[name] = list(loader)
        for one, other in zip(batches["here"], batches["there"], strict=True):
            assert torch.equal(one.indices, other.indices)
            assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
        # Three epochs, and the first group of the fourth, which was to come next; some were there from the start.
        assert SHARDS <= sum(server.asked.values()) <= 3 * SHARDS + 1
        assert max(server.asked.values()) <= 4

    def test_a_set_without_room_is_refused_and_the_advice_helps(self, server, tmp_path):
        source = open_source(remote(server), copies_gigabytes=gigabytes(tmp_path, 5))
        with pytest.raises(ValueError, match=r"copies of all of the 6 remote shards .*: set data.mix_shards=1 or data"):
            CropDataset(source, SETTINGS, seed=0, max_unreadable=0.0)
        with pytest.raises(ValueError, match=r"all of the 6 .* data.mix_shards=1 or data.cache_gigabytes=\d"):
            CropDataset(source, SETTINGS, seed=0, max_unreadable=0.0, mix_shards=2)
        assert shard_mixing(source, 1).together == 1
        source = open_source(remote(server), copies_gigabytes=gigabytes(tmp_path, 2))
        with pytest.raises(ValueError, match=r"copies of 3 \(three times data.mix_shards\) of .*: set data.cache"):
            shard_mixing(source, 1)
        for path in (tmp_path / "copies/shards").glob("*.tar"):
            path.unlink()
        with pytest.raises(ValueError, match=r"a shard takes .* raise data.cache_gigabytes"):
            open_source(remote(server).replace("..05", "..04"), copies_gigabytes=1e-9).read(0)

    def test_a_full_disk_gets_a_sentence(self, server, monkeypatch):
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("mira.data.remote.copy_content", full)
        with pytest.raises(ValueError, match=r"has no room for .*train-0..tar: lower data.cache_gigabytes"):
            open_source(remote(server))
        assert set(server.asked.values()) == {1}  # not tried again

    def test_half_copies_of_dead_processes_are_removed(self, server, tmp_path):
        half = tmp_path / "copies/shards/.abc.1.tmp.tar"
        half.parent.mkdir(parents=True)
        half.write_bytes(b"half")
        with exclusive(half.with_name("abc.lock")):  # as the process does that fetches it
            open_source(remote(server))
            assert half.exists()
        for path in (tmp_path / "copies/shards").glob("*.tar"):
            path.unlink()
        open_source(remote(server)).read(0)
        assert not half.exists()


class TestWrongAnswers:
    def test_a_page_in_the_place_of_a_shard_is_not_kept(self, server, tmp_path):
        path = tmp_path / "served/train-00.tar"
        good = path.read_bytes()
        path.write_bytes(b"<html>back soon</html>" * 100)
        with pytest.raises(ValueError, match=r"train-00.tar is not a tar file"):
            open_source(remote(server))
        path.write_bytes(good)
        assert len(open_source(remote(server))) == SHARDS * EACH

    def test_an_end_that_comes_too_soon_is_noticed_without_a_length(self, server):
        server.says_length, server.breaks = False, 1
        assert len(open_source(remote(server))) == SHARDS * EACH
        assert sorted(server.asked.values()) == [1] * (SHARDS - 1) + [2]

    def test_what_a_service_raises_is_tried_again_and_gets_a_sentence(self, server, monkeypatch):
        tried = []

        class Refused(Exception):
            pass

        def refuse(*_: object) -> None:
            tried.append(1)
            raise Refused("no credentials")

        monkeypatch.setattr("fsspec.open", refuse)
        monkeypatch.setattr("time.sleep", lambda _: None)
        with pytest.raises(ShardUnavailable, match=r"s3://x/a.tar cannot be fetched \(Refused: no credentials\)"):
            open_source("s3://x/a.tar")
        assert len(tried) == 3

    def test_a_folder_that_cannot_be_used_is_no_fault_of_pictures(self, server, monkeypatch):
        source = open_source(remote(server))
        monkeypatch.setattr(Path, "open", raising(PermissionError(errno.EACCES, "Permission denied")))
        with pytest.raises(ShardUnavailable, match=r"copies .* cannot be kept in .*copies/shards .*: set MIRA_CACHE"):
            source.read(0)
        monkeypatch.undo()
        monkeypatch.setattr("os.utime", raising(PermissionError(errno.EPERM, "Operation not permitted")))
        assert np.array_equal(source.read(0), pixels(0))  # another user's copy can be read


def raising(error: Exception):
    def raises(*_: object, **__: object) -> None:
        raise error

    return raises


def test_one_that_fails_does_not_keep_the_others_from_coming(server, tmp_path):
    source = open_source(remote(server))
    for path in Path(source._shards.folder).glob("*.tar"):
        path.unlink()
    (tmp_path / "served/train-02.tar").unlink()
    source.expect([2, 4])
    source._shards._fetcher[1].join(timeout=60)
    assert [path.name.partition("-")[2] for path in Path(source._shards.folder).glob("*.tar")] == ["train-04.tar"]


def test_random_order_needs_room_for_all_of_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MIRA_CACHE_GIGABYTES", str(gigabytes(tmp_path, 5)))
    with pytest.raises(ValueError, match=r"the linear probe reads .* in random order.* MIRA_CACHE_GIGABYTES"):
        check_room("the linear probe", open_source(remote(server)))
    check_room("the linear probe", open_source(local(tmp_path)))


def test_what_is_expected_comes_in_the_background(server):
    source = open_source(remote(server))
    for path in Path(source._shards.folder).glob("*.tar"):
        path.unlink()
    server.asked.clear()
    source.expect([4, 1])
    source._shards._fetcher[1].join(timeout=60)
    assert dict(server.asked) == {"train-04.tar": 1, "train-01.tar": 1}
    source.read(45)
    assert server.asked["train-04.tar"] == 1


def _read_all(spec: str, start: int) -> int:
    source = open_source(spec)
    order = np.roll(np.arange(len(source)), start)
    return sum(np.array_equal(source.read(int(index)), pixels(int(index))) for index in order)


@pytest.mark.slow
def test_processes_share_the_copies(server):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        right = pool.starmap(_read_all, [(remote(server), start) for start in (0, 20)])
    assert right == [SHARDS * EACH] * 2
    assert set(server.asked.values()) == {1}


class TestTrouble:
    def test_an_answer_that_ends_half_way_is_asked_for_again(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr("mira.data.remote.time.sleep", lambda seconds: None)
        server.breaks = 2
        assert np.array_equal(open_source(remote(server)).read(3), pixels(3))
        server.breaks = 3
        write_tar(tmp_path / "served/more.tar", range(5))
        with pytest.raises(ShardUnavailable, match="more.tar cannot be fetched .*ended after"):
            open_source(f"{server.address}/more.tar", split="all")
        assert server.asked["more.tar"] == 3

    def test_what_cannot_be_had_is_a_sentence(self, server, monkeypatch):
        monkeypatch.setattr("mira.data.remote.time.sleep", lambda seconds: None)
        with pytest.raises(ValueError, match=r"none.tar cannot be fetched .*404.*check the address"):
            open_source(f"{server.address}/none.tar")
        assert server.asked["none.tar"] == 1
        with pytest.raises(ValueError, match=r"write \{000..012\} instead of the wildcard"):
            open_source(f"{server.address}/train-*.tar")
        with pytest.raises(ValueError, match="only tar files can be read"):
            open_source(f"{server.address}/train.parquet")
        server.close()
        with pytest.raises(ValueError, match="cannot be fetched .*refused"):
            open_source(remote(server))

    def test_a_file_that_has_changed_is_noticed(self, server, tmp_path):
        source = open_source(remote(server), copies_gigabytes=gigabytes(tmp_path, 1))
        write_tar(tmp_path / "served/train-00.tar", range(8))
        with pytest.raises(ShardUnavailable, match="has another content than when it was first seen"):
            source.read(0)

    def test_other_sources_have_no_shards_to_mix(self):
        source = open_source("builtin:fashion", channels=1)
        with pytest.raises(ValueError, match="mix_shards is for tar files"):
            CropDataset(source, SETTINGS, seed=0, max_unreadable=0.0, mix_shards=2)


class TestOrder:
    SHARD_OF = np.repeat(np.arange(7), [5, 3, 8, 1, 6, 4, 9])

    @pytest.mark.parametrize("together", [1, 2, 3, 7, 20])
    def test_each_epoch_is_another_permutation_group_after_group(self, together):
        mixing = ShardMixing(self.SHARD_OF, together)
        count = len(self.SHARD_OF)
        orders = [batch_indices(count, count, seed=1, step=epoch, mixing=mixing) for epoch in range(3)]
        for epoch, order in enumerate(orders):
            assert sorted(order) == list(range(count))
            groups = mixing.groups(1, epoch)
            assert np.bincount(groups).max() <= together
            assert (np.diff(groups[self.SHARD_OF[order]]) >= 0).all()
            assert not np.array_equal(order, np.sort(order))
        assert not np.array_equal(orders[0], orders[1])

    def test_pictures_of_a_group_are_mixed(self):
        shard_of = np.repeat(np.arange(4), 250)
        order = batch_indices(1000, 1000, seed=0, step=0, mixing=ShardMixing(shard_of, 2))
        first = shard_of[order[:500]]
        assert len(np.unique(first)) == 2
        assert 200 < np.count_nonzero(np.diff(first)) < 300  # of 499, half of them on average

    @pytest.mark.parametrize(("rank", "world", "parts"), [(0, 1, 1), (1, 2, 1), (2, 3, 2)])
    def test_what_a_batch_needs_is_said_before(self, rank, world, parts):
        shard_of = np.repeat(self.SHARD_OF, 10)  # a group has more pictures than a batch
        mixing = ShardMixing(shard_of, 2)
        requests = Requests(len(shard_of), 9, 4, 0, 120, rank, world, parts, mixing)
        said: tuple[int, ...] = tuple(range(7))
        for request in requests:
            needed = set(shard_of[request.indices].tolist())
            assert needed <= set(request.shards)
            assert needed <= set(said)
            said = request.shards
            assert len(request.shards) <= 4

    def test_pictures_to_look_at_lie_in_the_first_files(self, server, tmp_path):
        assert to_choose_from(open_source(remote(server)), 12) == 2 * EACH
        assert to_choose_from(open_source(remote(server)), 20) == 2 * EACH
        assert to_choose_from(open_source(remote(server)), 500) == SHARDS * EACH
        assert to_choose_from(open_source(local(tmp_path)), 12) == SHARDS * EACH


def test_a_whole_run_gives_the_same_weights_as_from_the_disk(server, tmp_path):
    room = gigabytes(tmp_path, 3)
    data = {"mix_shards": 1, "cache_gigabytes": room, "labels": "none"}
    recipe = {**TINY, "data": data, "training": TINY["training"] | {"epochs": 2}}
    weights = []
    for name, source in (("here", local(tmp_path)), ("there", remote(server))):
        pretrain(source, out=tmp_path / name, recipe=recipe, quiet=True)
        run = load_run(tmp_path / name)
        assert run.recipe.data.source == source
        weights.append(run.checkpoint.model)
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    with pytest.raises(ValueError, match="set data.mix_shards"):
        pretrain(remote(server), out=tmp_path / "new", recipe={**recipe, "data": data | {"mix_shards": 3}}, quiet=True)
    assert not (tmp_path / "new").exists()
