"""What servers say and do: replaced files, endless ones, slow ones, wrong numbers; every sentence has the address."""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mira.data import open_source
from mira.data import remote_file as module
from mira.data.remote import in_threads
from mira.data.remote_file import RemoteFile, ShardUnavailable
from tests.data.test_shards import pixels, write_tar


class Odd:
    """A server whose answers a test decides."""

    def __init__(self) -> None:
        self.content = b""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.location = ""
        self.endless = self.trickles = False
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._begin()

            def do_GET(self) -> None:
                self._begin()
                with contextlib.suppress(OSError):
                    self.wfile.write(outer.content)
                    while outer.endless or outer.trickles:
                        self.wfile.write(bytes(1 if outer.trickles else 1 << 20))
                        if outer.trickles:
                            threading.Event().wait(0.02)

            def _begin(self) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                self.send_response(302 if outer.location else outer.status)
                if outer.location:
                    self.send_header("Location", outer.location)
                headers = {"Content-Length": str(len(outer.content))} | outer.headers
                for name, value in headers.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/a.tar"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.endless = self.trickles = False
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mira.data.remote.time.sleep", lambda _: None)
    server = Odd()
    write_tar(tmp_path / "a.tar", range(6))
    server.content = (tmp_path / "a.tar").read_bytes()
    yield server
    server.close()


def of_the_same_length(tmp_path: Path, length: int) -> bytes:
    write_tar(tmp_path / "b.tar", range(50, 56))
    content = (tmp_path / "b.tar").read_bytes()
    return content[:length].ljust(length, b"\0")


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_shard_replaced_by_one_of_the_same_length_is_noticed_and_listed_anew(header, server, tmp_path):
    server.headers[header] = "first"
    before = open_source(server.address, split="all")
    server.content, server.headers[header] = of_the_same_length(tmp_path, len(server.content)), "second"
    with pytest.warns(UserWarning, match=r"a\.tar was replaced on its server: it is listed anew"):
        now = open_source(server.address, split="all")
    assert now.identity() != before.identity()
    assert now.key(0) != before.key(0)
    assert np.array_equal(now.read(0), pixels(50))
    with pytest.raises(ShardUnavailable, match=r"a\.tar has another content than when it was first seen"):
        before.read(0)


def test_one_that_only_moved_to_another_machine_is_the_same(server, recwarn):
    server.headers["ETag"] = "first"
    before = open_source(server.address, split="all")
    server.headers["ETag"] = "second"
    assert open_source(server.address, split="all").identity() == before.identity()
    assert np.array_equal(before.read(3), pixels(3))
    assert not [one for one in recwarn if "replaced" in str(one.message)]
    server.asked.clear()
    open_source(server.address, split="all")
    assert server.asked == ["HEAD /a.tar"]


def test_without_a_word_of_the_server_the_bytes_tell(server, tmp_path):
    source = open_source(server.address, split="all")
    next((tmp_path / "cache/shards").glob("*.tar")).unlink()
    server.content = of_the_same_length(tmp_path, len(server.content))
    with pytest.raises(ShardUnavailable, match="has another content than when it was first seen"):
        source.read(0)


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"size": "x", "digest": 1, "version": [], "found": {}}', "[" * 9999])
def test_a_broken_note_is_made_anew(note, server, tmp_path):
    open_source(server.address, split="all")
    (path,) = (tmp_path / "cache/shards").glob("*.json")
    whole = json.loads(path.read_text())
    path.write_text(note)
    assert np.array_equal(open_source(server.address, split="all").read(2), pixels(2))
    assert json.loads(path.read_text()) | {"version": whole["version"]} == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"headers": {"Content-Length": "abc"}}, "its length is 'abc'"),
        ({"headers": {"Content-Length": str(2**62)}}, "raise data.cache_gigabytes"),
        ({"status": 206}, "status 206"),
        ({"location": "gopher://x/y"}, "gopher"),
        ({"location": "http://[broken/"}, "cannot be fetched"),
        ({"location": "http://host:port/"}, "cannot be fetched"),
        ({"headers": {"Content-Length": ""}, "endless": True}, "raise data.cache_gigabytes"),
    ],
)
def test_a_wrong_answer_is_a_sentence_with_the_address(change, said, server, tmp_path):
    vars(server).update(change)
    with pytest.raises(ShardUnavailable) as refused:
        open_source(server.address, split="all", copies_gigabytes=0.005)
    assert server.address in str(refused.value)
    assert said in str(refused.value)
    assert not [path for path in (tmp_path / "cache/shards").iterdir() if path.suffix == ".tar"]


def test_a_file_of_nothing_does_not_keep_its_room(server, tmp_path):
    server.content = bytes(1 << 20)
    with pytest.raises(ValueError, match="no pictures in"):
        open_source(server.address, split="all")
    assert not list((tmp_path / "cache/shards").glob("*.tar"))


def test_letters_of_any_language_are_escaped(server):
    open_source(server.address.replace("a.tar", "ü b.tar"), split="all")
    assert server.asked == ["GET /%C3%BC%20b.tar"]


def test_a_password_is_neither_printed_nor_kept(server, tmp_path):
    with pytest.raises(ValueError, match="http://host/a.tar was given with a user name") as refused:
        open_source("http://me:secret@host/a.tar")
    assert "secret" not in str(refused.value)
    assert "secret" not in str(RemoteFile("ftp://me:secret@host/a.tar"))


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(server, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    server.trickles, server.headers["Content-Length"] = True, "1000000"
    server.content = b""
    with pytest.raises(ShardUnavailable, match=r"a\.tar cannot be fetched \(it comes with less than 10 kB a second"):
        open_source(server.address, split="all")


def test_the_first_error_of_many_threads_is_raised_at_once():
    began = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            began.wait()
            raise ValueError("one failed")
        began.set()
        threading.Event().wait(3600)
        return number

    with pytest.raises(ValueError, match="one failed"):
        in_threads(work, 50, at_once=3)
    assert in_threads(lambda number: number * 2, 5, at_once=2) == [0, 2, 4, 6, 8]
    assert in_threads(lambda number: number, 0, at_once=2) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_listing_of_a_server_that_stalls(number, server, tmp_path):
    server.trickles, server.headers["Content-Length"] = True, "1000000"
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mira.cli import command; command()"
    )
    command = [sys.executable, "-c", program, "pretrain", server.address, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, env={**os.environ}, stderr=subprocess.PIPE, text=True)
    while "GET /a.tar" not in server.asked:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
