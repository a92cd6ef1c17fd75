"""Files behind a web server, through nginx and what may come between."""

import os
import pickle
import time

import pytest

from tests.storage.faults import faulty
from tests.storage.servers import NO_NGINX, nginx, serving
from trainkit.errors import StorageError
from trainkit.storage import locate
from trainkit.storage.piece_file import PIECE_BYTES

pytestmark = pytest.mark.skipif(nginx() is None, reason=NO_NGINX)

CONTENT = os.urandom(5 * PIECE_BYTES + 12_345)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    (files / "a").mkdir()
    (files / "a" / "big.bin").write_bytes(CONTENT)
    (files / "a" / "empty").write_bytes(b"")
    (files / "a" / "b c").mkdir()
    (files / "a" / "b c" / "é.txt").write_text("text")
    (files / "a" / ".hidden").write_text("hidden")
    (files / "unlisted").mkdir()
    with serving(tmp_path_factory.mktemp("nginx"), files) as port:
        yield port


def test_ranges_are_those_of_the_file(port):
    file = locate(f"http://127.0.0.1:{port}/a").child("big.bin")
    bounds = [(0, 1), (PIECE_BYTES - 1, PIECE_BYTES + 1), (5, 5), (len(CONTENT) - 3, len(CONTENT)), (0, len(CONTENT))]
    assert file.read_ranges(bounds) == [CONTENT[start:stop] for start, stop in bounds]
    assert (file.size(), file.read(7, 9), file.read(len(CONTENT) - 2)) == (len(CONTENT), CONTENT[7:9], CONTENT[-2:])
    assert pickle.loads(pickle.dumps(file)).read(1, 4) == CONTENT[1:4]


def test_a_folder_is_listed_with_its_names_as_they_are(port):
    folder = locate(f"http://127.0.0.1:{port}/a")
    assert folder.names() == ["b c/é.txt", "big.bin", "empty"]
    assert folder.child("b c/é.txt").read() == b"text"
    assert folder.child("empty").read() == b""
    assert (folder.is_folder(), folder.is_file(), folder.child("big.bin").is_file()) == (True, False, True)
    assert (folder.child("gone").is_file(), folder.child("gone").is_folder()) == (False, False)


@pytest.mark.parametrize(
    ("path", "message"),
    [("/a/gone", "gone does not exist"), ("/unlisted", "set nginx: autoindex on")],
)
def test_what_is_not_there_is_said_at_once(port, path, message):
    location = locate(f"http://127.0.0.1:{port}{path}")
    with pytest.raises(StorageError, match=message):
        location.names() if path == "/unlisted" else location.read()


def test_a_range_past_the_end_names_the_file(port):
    with pytest.raises(StorageError, match=r"big\.bin ends at byte 5,255,225, before 5,255,226"):
        locate(f"http://127.0.0.1:{port}/a/big.bin").read(0, len(CONTENT) + 1)


@pytest.mark.parametrize("fault", ["503", "429", "cut", "short", "stall"])
def test_a_fault_that_passes_does_not_show(port, fault):
    with faulty(port) as faults:
        faults.plan = [fault]
        file = locate(f"{faults.url}/a/big.bin")
        assert file.read() == CONTENT
        assert faults.plan == [] and faults.counts["GET"] == 3  # 6 pieces in 2 requests, one of them twice


@pytest.mark.parametrize("fault", ["503", "cut", "stall"])
def test_a_store_that_is_gone_ends_in_one_line(port, fault, monkeypatch):
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "1.5")
    with faulty(port) as faults:
        faults.always = fault
        file = locate(f"{faults.url}/a/big.bin")
        with pytest.raises(StorageError, match=r"big\.bin cannot be reached \(.*\), tried for \d s") as caught:
            file.read(0, 10)
        assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_ends_too(monkeypatch):
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "1")
    with pytest.raises(StorageError, match=r"/x cannot be reached \(no connection\)"):
        locate("http://127.0.0.1:9/x").read()


def test_a_server_that_ignores_ranges_is_read_whole(port):
    with faulty(port) as faults:
        faults.drops_ranges = True
        assert locate(f"{faults.url}/a/big.bin").read(10, 20) == CONTENT[10:20]


def test_a_large_file_is_not_read_whole_for_each_piece(port, monkeypatch):
    monkeypatch.setattr("trainkit.storage.http_store._WHOLE_BYTES", 1000)
    with faulty(port) as faults:
        faults.drops_ranges = True
        with pytest.raises(StorageError, match="the server ignores ranges"):
            locate(f"{faults.url}/a/big.bin").read(10, 20)


def test_a_file_that_changes_is_not_mixed(port, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    (tmp_path / "nginx").mkdir()
    (files / "x").write_bytes(b"1" * 3 * PIECE_BYTES)
    with serving(tmp_path / "nginx", files) as own:
        file = locate(f"http://127.0.0.1:{own}/x")
        assert file.read(0, 4) == b"1111"
        (files / "x").write_bytes(b"2" * 3 * PIECE_BYTES)
        os.utime(files / "x", (1, 1))
        with pytest.raises(StorageError, match="has changed while it was being read"):
            file.read(2 * PIECE_BYTES, 2 * PIECE_BYTES + 4)
        assert locate(f"http://127.0.0.1:{own}/x").read(0, 4) == b"2222"


def test_a_fork_reads_with_connections_of_its_own(port):
    file = locate(f"http://127.0.0.1:{port}/a/big.bin")
    file.prefetch([(0, 10)])
    assert file.read(0, 10) == CONTENT[:10]
    child = os.fork()
    if child == 0:
        os._exit(0 if file.read(3 * PIECE_BYTES, 3 * PIECE_BYTES + 9) == CONTENT[3 * PIECE_BYTES :][:9] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_what_is_fetched_ahead_is_not_fetched_again(port):
    with faulty(port) as faults:
        faults.latency_s = 0.05
        file = locate(f"{faults.url}/a/big.bin")
        file.prefetch([(0, len(CONTENT))])
        time.sleep(0.02)
        assert file.read() == CONTENT
        assert file.read() == CONTENT
        assert faults.counts["GET"] <= 3


def test_an_error_ahead_is_raised_where_it_is_read(port, monkeypatch):
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "0.5")
    with faulty(port) as faults:
        file = locate(f"{faults.url}/a/big.bin")
        assert file.size() == len(CONTENT)
        faults.always = "503"
        file.prefetch([(0, 10)])
        with pytest.raises(StorageError, match="the server answered 503"):
            file.read(0, 10)
        faults.always = "ok"
        assert file.read(0, 10) == CONTENT[:10]


def test_user_and_password_come_from_netrc(port, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password pw\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    from trainkit.storage.http_store import _authorization

    assert _authorization("127.0.0.1") == {"authorization": "Basic bWU6cHc="}
    assert _authorization("elsewhere.org") == {}
