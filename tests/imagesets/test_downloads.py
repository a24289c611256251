"""Downloads that were cut go on where they were, and only what is right gets its name."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbhelpers.core.errors import DownloadError
from nbhelpers.imagesets import downloads

CONTENT = hashlib.shake_256(b"a public file").digest(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; ``asked`` holds the Range header of each request, ``sent`` the bytes of each
    answer's body.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True
        self.cut = None
        self.slow_s = 0
        self.status = None
        self.asked = []
        self.sent = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if server.status or (start and start >= len(server.content)):
            server.sent.append(0)
            self.send_error(server.status or 416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: server.cut]
        server.sent.append(len(body))
        time.sleep(server.slow_s)
        self.wfile.write(body)  # where it was cut, the connection closes now

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """Fetches the file by its name in the registry; ``fetch.part`` is where what came is kept."""
    file = downloads.RemoteFile("file.bin", server.url, SHA256, len(CONTENT))
    monkeypatch.setattr(downloads, "files_of", lambda _: (file,))

    def run():
        return downloads.fetch("test", tmp_path)["file.bin"]

    run.folder = tmp_path / "test"
    run.folder.mkdir()
    run.part = run.folder / f".{SHA256}.part"
    return run


def only_the_file(folder):
    assert [path.name for path in folder.iterdir()] == ["file.bin"]
    assert (folder / "file.bin").read_bytes() == CONTENT


def test_after_a_cut_only_the_rest_is_asked_for(server, fetch, capsys):
    server.cut = 1 << 17  # what is written at once is half of it
    for tries in (1, 2):
        with pytest.raises(
            DownloadError, match=r"download failed.*next try goes on from here.*by hand"
        ):
            fetch()
        assert (
            fetch.part.read_bytes() == CONTENT[: tries * server.cut]
            and not (fetch.folder / "file.bin").exists()
        )
    server.cut = None
    fetch()
    only_the_file(fetch.folder)
    assert server.asked == [None, "bytes=131072-", "bytes=262144-"] and server.sent == [
        131_072,
        131_072,
        37_856,
    ]
    assert "87%" in capsys.readouterr().err  # the bar begins with what is there already


def test_a_server_without_ranges_sends_all_of_it_once(server, fetch):
    fetch.part.write_bytes(CONTENT[:1000])
    server.ranges = False
    fetch()
    only_the_file(fetch.folder)
    assert server.asked == ["bytes=1000-"] and server.sent == [len(CONTENT)]


@pytest.mark.parametrize(
    "part",
    [
        b"something else",
        CONTENT[:50_000] + b"?" + CONTENT[50_001:100_000],
        CONTENT[:100_000] + bytes(10),
    ],
)
def test_wrong_bytes_in_the_part_cost_one_more_download(server, fetch, part):
    fetch.part.write_bytes(part)
    fetch()
    only_the_file(fetch.folder)
    assert server.asked == [f"bytes={len(part)}-", None] and server.sent[1] == len(CONTENT)


@pytest.mark.parametrize("part", [CONTENT + b"more", bytes(len(CONTENT)), bytes(2 * len(CONTENT))])
def test_a_part_as_long_as_the_file_or_longer_is_started_again(server, fetch, part):
    fetch.part.write_bytes(part)
    fetch()
    only_the_file(fetch.folder)
    assert server.sent == [0, len(CONTENT)]


def test_a_part_that_was_complete_gets_its_name(server, fetch):
    fetch.part.write_bytes(CONTENT)  # killed between the last byte and the name
    fetch()
    only_the_file(fetch.folder)
    assert server.sent == [0]


def test_a_file_changed_at_its_source_is_refused_and_nothing_is_kept(server, fetch):
    server.content = CONTENT[::-1]
    fetch.part.write_bytes(CONTENT[:1000])
    with pytest.raises(DownloadError, match="cut or changed"):
        fetch()
    assert not list(fetch.folder.iterdir())
    server.content = CONTENT
    fetch()
    only_the_file(fetch.folder)
    assert server.asked[2:] == [None]


def test_an_error_of_the_server_keeps_what_came(server, fetch):
    fetch.part.write_bytes(CONTENT[:1000])
    server.status = 503
    with pytest.raises(DownloadError, match="download failed"):
        fetch()
    assert fetch.part.read_bytes() == CONTENT[:1000]


def test_a_folder_that_cannot_be_written_is_a_named_error(server, fetch):
    fetch.part.mkdir()
    with pytest.raises(DownloadError, match=r"download failed \(IsADirectoryError\)"):
        fetch()


def test_of_several_at_once_one_downloads_and_the_others_wait(server, fetch):
    server.slow_s = 0.3
    start = threading.Barrier(4)

    def one(_):
        start.wait()
        return fetch()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(one, range(4))) == {fetch.folder / "file.bin"}
    only_the_file(fetch.folder)
    assert server.sent == [len(CONTENT)]


def test_who_waited_for_one_that_failed_tries_itself(server, fetch):
    server.slow_s = 0.3
    server.content = CONTENT[::-1]
    with ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(fetch) for _ in range(2)]
        assert all(isinstance(one.exception(), DownloadError) for one in tries)
    assert not list(fetch.folder.iterdir()) and server.sent == [len(CONTENT)] * 2


@given(
    part=st.one_of(
        st.integers(0, len(CONTENT)).map(lambda end: CONTENT[:end]), st.binary(max_size=2000)
    ),
    ranges=st.booleans(),
)
def test_whatever_the_part_holds_the_file_is_right(tmp_path_factory, part, ranges):
    folder = tmp_path_factory.mktemp("part")
    with Server() as running:
        running.ranges = ranges
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        (folder / f".{SHA256}.part").write_bytes(part)
        with downloads.progress_bar(disable=True) as bar:
            downloads.download(running.url, folder / "file.bin", SHA256, bar, "")
        running.shutdown()
    only_the_file(folder)
