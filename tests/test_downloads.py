"""Fetching the files of the built-in sets from a server that truncates, stalls, lies and refuses."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import LocalServer

from spiketext import downloads
from spiketext.data import describe, load
from spiketext.downloads import SOURCES, Source, cache_folder, fetch
from spiketext.tables import read_text

BODY = b"".join(f"{number} is the number of this line\n".encode() for number in range(1000))  # about 32 kB
FILE = "Subj/subj.objective"


class Server:
    """A local server: `script` has one behaviour for each request to come, "fine" after the last; `seen` the ranges."""

    def __init__(self):
        self.script: list[str] = []
        self.seen: list[str | None] = []
        self.bodies = {"/file": BODY}
        self.over = threading.Event()
        self.local = LocalServer(self.answer)
        self.address = self.local.address

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.seen.append(asked)
        how = self.script.pop(0) if self.script else "fine"
        if how.isdigit():
            return request.send_error(int(how))
        body = self.bodies[request.path]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and how != "whole" else 0
        if start >= len(body):
            return request.send_error(416)
        body = body[start:]
        if how == "lie":
            body = body.replace(b"number", b"nombre")
        if how == "short":  # with a length that agrees
            body = body[: len(body) // 3]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{start + len(body)}")
        if how != "endless":
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body if how not in ("truncate", "stall") else body[: len(body) // 2])
        request.wfile.flush()
        if how == "stall":
            self.over.wait(5)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that has one file of a built-in set, an empty cache, and little patience."""
    server = Server()
    monkeypatch.setenv("SPIKETEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPIKETEXT_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(downloads, "WAITS", (0.0, 0.01, 0.02))
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    monkeypatch.setitem(SOURCES, FILE, Source(hashlib.sha256(BODY).hexdigest(), f"{server.address}/file"))
    yield server
    server.over.set()
    server.local.stop()


def files_in_cache() -> list[str]:
    """What the cache holds, without locks (which are empty)."""
    return sorted(p.name for p in cache_folder().rglob("*") if p.is_file() and not p.name.endswith(".lock"))


@pytest.mark.parametrize(
    "script",
    [["fine"], ["truncate"], ["stall"], ["500"], ["503", "truncate"], ["429", "stall"], ["endless"],
     ["truncate", "whole"], ["truncate", "truncate"]],
    ids="-".join,
)  # fmt: skip
def test_a_file_arrives_whole_whatever_the_server_does(script, server):
    server.script = [*script]
    assert fetch(FILE).read_bytes() == BODY
    assert files_in_cache() == ["subj.objective"]
    before = len(server.seen)
    assert fetch(FILE).read_bytes() == BODY
    assert len(server.seen) == before  # fetched once


def test_a_broken_transfer_goes_on_where_it_stopped(server):
    server.script = ["truncate"]
    fetch(FILE)
    assert server.seen == [None, f"bytes={len(BODY) // 2}-"]


def test_a_transfer_broken_off_for_good_is_continued_by_the_next_command(server):
    server.script = ["truncate", "503", "503"]
    with pytest.raises(OSError, match=r"/file could not be read \(HTTP 503"):
        fetch(FILE)
    assert files_in_cache() == [".subj.objective.part"]
    fetch(FILE)
    assert server.seen[-1] == f"bytes={len(BODY) // 2}-" and files_in_cache() == ["subj.objective"]


@pytest.mark.parametrize("script", [["lie"], ["short"], ["truncate", "lie", "lie"]], ids="-".join)
def test_another_content_is_thrown_away(script, server):
    server.script = [*script]
    with pytest.raises(OSError, match=r"/file gave a content with SHA-256 .*, expected .*thrown away"):
        fetch(FILE)
    assert files_in_cache() == []


@pytest.mark.parametrize("rest", [b"x" * 1000, BODY, b"y" * (len(BODY) + 1)], ids=["wrong", "complete", "too long"])
def test_a_rotten_rest_of_an_earlier_transfer_does_no_harm(rest, server):
    part = cache_folder() / "Subj/.subj.objective.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(rest)
    assert fetch(FILE).read_bytes() == BODY
    assert files_in_cache() == ["subj.objective"]


@pytest.mark.parametrize(("script", "requests"), [(["404"], 1), (["403"], 1), (["500"] * 3, 3), (["stall"] * 3, 3)])
def test_what_cannot_be_had_is_one_line(script, requests, server):
    server.script = [*script]
    with pytest.raises(FileNotFoundError) as caught:
        load("subj")
    line = str(caught.value)
    assert "\n" not in line and f"{server.address}/file" in line
    assert str(cache_folder()) in line and "Subj/subj.objective, Subj/subj.subjective" in line
    assert len(server.seen) == requests


def test_no_server_at_all_is_one_line(server, monkeypatch):
    monkeypatch.setitem(SOURCES, FILE, Source("0" * 64, "http://127.0.0.1:9/nobody"))
    with pytest.raises(FileNotFoundError, match=r"127\.0\.0\.1:9/nobody could not be read \(.*refused\)"):
        load("subj")


def test_a_file_inside_a_zip_is_taken_out(server, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/part.txt", BODY)
    server.bodies["/set.zip"] = packed.getvalue()
    server.script = ["truncate"]
    whole = Source(hashlib.sha256(BODY).hexdigest(), f"{server.address}/set.zip", "set/part.txt")
    monkeypatch.setitem(SOURCES, FILE, whole)
    assert fetch(FILE).read_bytes() == BODY and files_in_cache() == ["subj.objective"]
    (cache_folder() / FILE).unlink()
    for broken in (whole._replace(member="set/other.txt"), whole._replace(address=f"{server.address}/file")):
        monkeypatch.setitem(SOURCES, FILE, broken)
        with pytest.raises(OSError, match="is no zip with set/"):
            fetch(FILE)
        assert files_in_cache() == []


def test_a_damaged_zip_is_thrown_away_and_a_rest_of_its_text_does_no_harm(server, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/part.txt", BODY)
    rotten = bytearray(packed.getvalue())
    rotten[60:90] = b"\xff" * 30  # in the middle of what is deflated
    server.bodies |= {"/set.zip": packed.getvalue(), "/rotten.zip": bytes(rotten)}
    whole = Source(hashlib.sha256(BODY).hexdigest(), f"{server.address}/set.zip", "set/part.txt")
    monkeypatch.setitem(SOURCES, FILE, whole._replace(address=f"{server.address}/rotten.zip"))
    with pytest.raises(OSError, match=r"is no zip with set/part\.txt in it, or a damaged one .*thrown away"):
        fetch(FILE)
    assert files_in_cache() == []
    monkeypatch.setitem(SOURCES, FILE, whole)

    def killed(*streams):
        streams[1].write(BODY[:100])
        raise SystemExit

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(downloads, "_transfer", lambda address, part: part.write_bytes(packed.getvalue()))
        patched.setattr(Path, "unlink", lambda *args, **how: None)  # a killed process tidies nothing up
        patched.setattr(downloads.shutil, "copyfileobj", killed)
        fetch(FILE)
    assert files_in_cache() == [".subj.objective.part", ".subj.objective.unpacked"]
    assert (cache_folder() / "Subj/.subj.objective.part").read_bytes() == packed.getvalue()
    assert fetch(FILE).read_bytes() == BODY and files_in_cache() == ["subj.objective"]


def _fetch_in_a_process(address: str) -> None:
    SOURCES[FILE] = Source(hashlib.sha256(BODY).hexdigest(), address)
    fetch(FILE)


def test_two_processes_fetch_once(server):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_fetch_in_a_process, args=(f"{server.address}/file",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(10)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(server.seen) == 1 and (cache_folder() / FILE).read_bytes() == BODY


def test_a_killed_transfer_leaves_nothing_that_looks_whole(server):
    server.script = ["stall"]
    process = multiprocessing.get_context("fork").Process(target=_fetch_in_a_process, args=(f"{server.address}/file",))
    process.start()
    deadline = time.monotonic() + 10
    part = cache_folder() / "Subj/.subj.objective.part"
    while time.monotonic() < deadline and not part.exists():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (cache_folder() / FILE).exists()
    assert fetch(FILE).read_bytes() == BODY


def test_a_set_is_fetched_read_and_listed(server, monkeypatch, tmp_path):
    other = BODY.replace(b"line", b"row")
    server.bodies["/other"] = other
    monkeypatch.setitem(
        SOURCES, "Subj/subj.subjective", Source(hashlib.sha256(other).hexdigest(), f"{server.address}/other")
    )
    state = {entry["name"]: entry["state"] for entry in describe(tmp_path)}
    assert (state["subj"], state["glue/rte"], state["demo"]) == ("to be fetched", "no address known", "at hand")
    assert len(server.seen) == 0  # a list fetches nothing
    assert sum(len(split) for split in load("subj").splits.values()) == 2000
    assert {entry["name"]: entry["state"] for entry in describe(tmp_path)}["subj"] == "cached"
    here = tmp_path / "here" / "Subj"
    here.mkdir(parents=True)
    for name in ("subj.objective", "subj.subjective"):
        (here / name).write_text(read_text(cache_folder() / "Subj" / name), encoding="utf-8")
    assert {entry["name"]: entry["state"] for entry in describe(here.parent)}["subj"] == "at hand"


def test_every_address_is_whole_and_every_sum_a_sum():
    for file, source in SOURCES.items():
        assert len(source.sha256) == 64 and Path(file).name
        assert source.address is None or source.address.startswith("https://")
