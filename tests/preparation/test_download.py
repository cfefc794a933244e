"""Downloads, from a server on this machine that breaks off."""

import hashlib
import http.server
import os
import threading
from typing import ClassVar

import pytest

from dml_jax import UserError
from dml_jax.data.published import Archive
from dml_jax.preparation.download import download

CONTENT = os.urandom(300_000)


class Server(http.server.BaseHTTPRequestHandler):
    """Sends CONTENT, from where it is asked for, and breaks off after `breaks` bytes, once."""

    breaks: int | None = None
    ranges = True
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        begin = 0
        asked = self.headers.get("Range", "")
        self.asked.append(asked)
        if self.path == "/nowhere":
            self.send_error(404)
            return
        if asked and self.ranges:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            if begin >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        end = len(CONTENT) if Server.breaks is None else begin + Server.breaks
        Server.breaks = None
        self.wfile.write(CONTENT[begin:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(Server, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    Server.breaks, Server.ranges = None, True


def archive(server, **how):
    sums = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
    return Archive(
        **{"file": "a.bin", "url": f"{server}/a.bin", "size": len(CONTENT), "checksum": sums} | how
    )


@pytest.mark.parametrize("ranges", [True, False])
def test_it_goes_on_where_it_was_cut_off(url, ranges, tmp_path):
    Server.breaks, Server.ranges = 100_000, ranges
    shown = []
    with pytest.raises(UserError, match="the same command goes on from there"):
        download(archive(url), tmp_path, lambda done, total: shown.append((done, total)))
    assert not (tmp_path / "a.bin").exists() and (tmp_path / "a.bin.part").stat().st_size == 100_000
    assert download(archive(url), tmp_path, lambda *_: None).read_bytes() == CONTENT
    assert Server.asked == ["", "bytes=100000-"] and shown[-1] == (100_000, len(CONTENT))
    # What is there is not asked for again.
    download(archive(url), tmp_path, lambda *_: None)
    assert len(Server.asked) == 2


def test_all_had_arrived(url, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert download(archive(url), tmp_path, lambda *_: None).read_bytes() == CONTENT


def test_what_is_something_else_is_refused(url, tmp_path):
    with pytest.raises(UserError, match="has 300,000 bytes and not the 5 that are published"):
        download(archive(url, size=5), tmp_path, lambda *_: None)
    with pytest.raises(UserError, match=r"md5 sum .* and not 00, which is published"):
        download(archive(url, checksum="md5:00"), tmp_path, lambda *_: None)
    assert not (tmp_path / "a.bin").exists()
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="has 1 bytes"):
        download(archive(url), tmp_path, lambda *_: None)


def test_nothing_is_there(url, tmp_path):
    with pytest.raises(UserError, match="cannot be downloaded: 404"):
        download(archive(url, url=f"{url}/nowhere"), tmp_path, lambda *_: None)
    with pytest.raises(
        UserError,
        match=r"cannot be downloaded: .*refused.*A file from elsewhere is accepted as .*a\.bin",
    ):
        download(archive(url, url="http://127.0.0.1:9/a"), tmp_path, lambda *_: None)
