"""The cache of pieces: bounded, checked, whole after a kill, and shared by processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.storage.faults import faulty
from tests.storage.servers import NO_NGINX, nginx, serving
from trainkit.errors import StorageError
from trainkit.storage import locate, reader
from trainkit.storage.piece_file import PIECE_BYTES
from trainkit.storage.pieces import Pieces
from trainkit.storage.settings import StorageSettings
from trainkit.testing import run_ranks

KEYS = [f"{number:02x}" * 16 for number in range(20)]
CONTENT = os.urandom(4 * PIECE_BYTES)
needs_nginx = pytest.mark.skipif(nginx() is None, reason=NO_NGINX)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    (files / "x").write_bytes(CONTENT)
    with serving(tmp_path_factory.mktemp("nginx"), files) as port:
        yield port


def _kept(tmp_path):
    return [path for path in (tmp_path / "cache" / "pieces").glob("??/*") if path.is_file()]


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, PIECE_BYTES])
def test_a_range_of_a_piece_is_what_was_written(tmp_path, size):
    pieces, content = Pieces(tmp_path / "p", 1 << 30), os.urandom(size)
    assert pieces.write({KEYS[1]: content}) and pieces.read(KEYS[1]) == content
    for start, stop in ((0, 0), (0, size), (size // 2, size), (size // 3, size // 2)):
        assert pieces.read(KEYS[1], start, stop) == content[start:stop]


@pytest.mark.parametrize("at", [0, 10, 200, 70_000, -1])
def test_a_damaged_piece_is_removed_and_counted(tmp_path, at, capsys):
    pieces = Pieces(tmp_path / "p", 1 << 30)
    pieces.write({KEYS[1]: os.urandom(100_000)})
    path = Path(pieces._path(KEYS[1]))
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert pieces.read(KEYS[1]) is None and pieces.num_damaged == 1 and not path.exists()
    assert "is damaged (number 1): it is fetched again" in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, 20, 200, 50_000])
def test_a_piece_cut_short_is_damaged(tmp_path, length):
    pieces = Pieces(tmp_path / "p", 1 << 30)
    pieces.write({KEYS[1]: os.urandom(100_000)})
    os.truncate(pieces._path(KEYS[1]), length)
    assert pieces.read(KEYS[1]) is None and pieces.num_damaged == 1


def test_a_piece_under_another_name_is_damaged(tmp_path):
    pieces = Pieces(tmp_path / "p", 1 << 30)
    pieces.write({KEYS[1]: b"content"})
    Path(pieces._path(KEYS[2])).parent.mkdir()
    Path(pieces._path(KEYS[1])).rename(pieces._path(KEYS[2]))
    assert pieces.read(KEYS[2]) is None and pieces.num_damaged == 1


def test_those_not_used_for_longest_make_room(tmp_path):
    pieces = Pieces(tmp_path / "p", 10 * 1_200)
    now = time.time()
    for age, key in enumerate(reversed(KEYS[:8])):
        pieces.write({key: bytes(1_000)})
        os.utime(pieces._path(key), (now - 1000 + age, now - 1000 + age))
    pieces.read(KEYS[7])  # the oldest is used again
    for key in KEYS[8:12]:
        pieces.write({key: bytes(1_000)})
    assert pieces.has(KEYS[7]) and not pieces.has(KEYS[6]) and all(map(pieces.has, KEYS[8:12]))
    assert sum(path.stat().st_size for path in (tmp_path / "p").glob("??/*")) <= 10 * 1_200
    assert Pieces(tmp_path / "p", 1 << 30)._count(0) == sum(
        path.stat().st_size for path in (tmp_path / "p").glob("??/*")
    )


def test_a_limit_of_zero_keeps_nothing(tmp_path):
    pieces = Pieces(tmp_path / "p", 0)
    assert not pieces.write({KEYS[0]: b"x"}) and pieces.read(KEYS[0]) is None and not (tmp_path / "p").exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
    Pieces(tmp_path / "p", 1 << 30)
    part = tmp_path / "p" / "part" / "x.1.2"
    part.write_bytes(b"half")
    Pieces(tmp_path / "p", 1 << 30)
    assert part.exists()  # perhaps it is being written
    os.utime(part, (1, 1))
    Pieces(tmp_path / "p", 1 << 30)
    assert not part.exists()


def test_a_block_is_read_from_the_disk_as_a_whole_once(tmp_path, monkeypatch):
    pieces, pread, read = Pieces(tmp_path / "p", 1 << 30), os.pread, list[int]()
    pieces.write({KEYS[1]: CONTENT[:PIECE_BYTES]})

    def counted(descriptor, size, at):
        read.append(size)
        return pread(descriptor, size, at)

    monkeypatch.setattr(os, "pread", counted)
    ranges = [(70_000, 74_096), (80_000, 80_010), (70_001, 70_002)]
    assert pieces.read_ranges(KEYS[1], ranges) == [CONTENT[start:stop] for start, stop in ranges]
    assert read[1:] == [65_536, 10, 1], "the header, the block with its checksum, and then what is asked for"
    os.utime(pieces._path(KEYS[1]), (1, 1))
    pieces.read(KEYS[1], 70_000, 70_001)
    assert 65_536 in read[4:], "whatever was done to the file, it is checked again"


def test_a_removed_piece_is_not_read_from_an_open_file(tmp_path):
    pieces, other = Pieces(tmp_path / "p", 1 << 30), Pieces(tmp_path / "p", 1 << 30)
    pieces.write({KEYS[1]: b"content"})
    assert pieces.read(KEYS[1]) == b"content"
    other.remove(KEYS[1])
    assert pieces.read(KEYS[1]) is None and pieces.num_damaged == 0
    other.write({KEYS[1]: b"other"})
    assert pieces.read(KEYS[1]) == b"other"


def test_few_pieces_are_open_at_a_time(tmp_path):
    pieces = Pieces(tmp_path / "p", 32 * 3 * PIECE_BYTES)
    for key in KEYS:
        pieces.write({key: b"content"})
        assert pieces.read(key) == b"content" and len(pieces._open) <= 3


@needs_nginx
def test_a_full_disk_is_said_once_and_the_run_goes_on(port, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trainkit.storage.pieces._has_warned", bytearray(1))
    file, own = locate(f"http://127.0.0.1:{port}/x"), reader.reader(StorageSettings.from_environment())
    assert file.read(0, 5) == CONTENT[:5]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainkit.storage.pieces.header", full)
    assert file.read() == CONTENT and file.read() == CONTENT
    err = capsys.readouterr().err
    assert err.count("going on without it") == 1 and "No space left on device" in err and own.pieces.is_off


@needs_nginx
@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small file system, which takes root")
def test_a_small_disk_fills_up_and_the_run_goes_on(port, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trainkit.storage.pieces._has_warned", bytearray(1))
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        monkeypatch.setenv("TRAINKIT_CACHE", str(small))
        assert locate(f"http://127.0.0.1:{port}/x").read() == CONTENT
        assert capsys.readouterr().err.count("going on without it") == 1
        assert not [*(small / "pieces" / "part").iterdir()]
    finally:
        subprocess.run(["umount", str(small)], check=True)


@needs_nginx
def test_a_damaged_piece_is_fetched_again(port, tmp_path):
    with faulty(port) as faults:
        file = locate(f"{faults.url}/x")
        assert file.read() == CONTENT
        path = max(_kept(tmp_path))
        content = bytearray(path.read_bytes())
        content[5_000] ^= 1
        path.write_bytes(content)
        assert file.read() == CONTENT
        assert faults.counts["GET"] == 2 and reader.reader(StorageSettings.from_environment()).pieces.num_damaged == 1


@needs_nginx
def test_what_the_reader_finds_damaged_is_asked_for_again(port):
    with faulty(port) as faults:
        faults.plan = ["flip"]
        file = locate(f"{faults.url}/x")
        assert file.read(0, 10) != CONTENT[:10]  # only a checksum of the file's own can tell
        file.forget([(0, 10)])
        assert file.read(0, 10) == CONTENT[:10]


@needs_nginx
def test_what_does_not_pass_its_check_is_not_kept(port, tmp_path):
    def check(start, content):
        if content != CONTENT[start : start + len(content)]:
            raise StorageError("damaged")

    with faulty(port) as faults:
        faults.plan = ["flip"]
        file = locate(f"{faults.url}/x")
        with pytest.raises(StorageError, match=r"^damaged$"):
            file.read_ranges([(5, 10)], check)
        assert not _kept(tmp_path)
        assert file.read_ranges([(5, 10), (100, 90_000)], check) == [CONTENT[5:10], CONTENT[100:90_000]]
        assert faults.counts["GET"] == 2 and len(_kept(tmp_path)) == 1


@needs_nginx
def test_what_is_announced_fails_where_it_is_read(port):
    def refuse(start, content):
        raise StorageError("damaged")

    file = locate(f"http://127.0.0.1:{port}/x")
    assert file.prefetch([(0, 10)], lambda: refuse) >= 0
    with pytest.raises(StorageError, match=r"^damaged$"):
        file.read_ranges([(0, 10)], refuse)
    assert file.read_ranges([(0, 10)], lambda start, content: None) == [CONTENT[:10]]


def _read_all(url, cache):
    os.environ.update(TRAINKIT_CACHE=cache, TRAINKIT_STORAGE_CACHE_GB="1")
    import hashlib

    from trainkit.storage import locate

    return hashlib.sha256(locate(url).read()).hexdigest()


@needs_nginx
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_of_a_machine_fetch_a_piece_once(port, tmp_path, world_size):
    with faulty(port) as faults:
        faults.latency_s = 0.1
        found = run_ranks(_read_all, world_size, f"{faults.url}/x", str(tmp_path / "cache"))
        assert len(set(found)) == 1 and faults.counts["GET"] == 1


_JOB = """
import sys, hashlib
from trainkit.storage import locate
print("begins", flush=True)
print(hashlib.sha256(locate(sys.argv[1]).read()).hexdigest())
"""


@needs_nginx
def test_a_kill_while_a_piece_is_fetched_leaves_the_next_whole(port, tmp_path):
    with faulty(port) as faults:
        faults.plan = ["ok", "stall"]
        url = f"{faults.url}/x"
        locate(url).read(0, 10)
        for path in _kept(tmp_path)[:2]:
            path.unlink()
        process = subprocess.Popen([sys.executable, "-c", _JOB, url], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        until = time.monotonic() + 30
        while faults.counts["GET"] < 2 and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
        assert faults.counts["GET"] == 2
        started = time.monotonic()
        assert locate(url).read() == CONTENT
        assert time.monotonic() - started < 20  # the lock of the killed one is free
