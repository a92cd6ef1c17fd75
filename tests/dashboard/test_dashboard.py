"""The dashboard over HTTP: what it shows, and to whom."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.tracking.hostile import hostile_run
from trainkit.checkpoint.run_directory import RunLock
from trainkit.cli.main import main
from trainkit.dashboard.access import Access
from trainkit.dashboard.server import HEADERS, Dashboard
from trainkit.dashboard.status import status_of
from trainkit.tracking import Jsonl, Run


@contextmanager
def _serving(root, **given):
    with Dashboard(root, **given) as dashboard:
        thread = threading.Thread(target=dashboard.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield dashboard
        finally:
            dashboard.shutdown()
            thread.join()


def _ask(dashboard, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=20)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer, answer.read().decode()
    finally:
        connection.close()


def _run(directory, steps=(1, 2), **last):
    directory.mkdir(parents=True)
    tracker = Jsonl()
    tracker.start(Run(directory=directory, name=directory.name))
    for step in steps:
        tracker.log(step, {"loss": 10.0 * step, "position": 8 * step, "eta_s": 75.0} | last)
    return tracker


@pytest.fixture
def root(tmp_path):
    _run(tmp_path / "a").finish("finished")
    _run(tmp_path / "group" / "b", (1, 2, 3)).finish("finished")
    (tmp_path / "no run").mkdir()
    return tmp_path


def test_runs_are_listed_with_their_status(root):
    (root / "a" / "result.json").write_text("{}")
    owner = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": "1", "job": None, "beat": 3}
    _run(root / "killed").finish("failed")
    (root / "killed" / ".lock").write_text(json.dumps(owner))
    _run(root / "going")
    lock = RunLock(root / "going")
    try:
        statuses = {name: status_of(root / name) for name in ("a", "group/b", "killed", "going")}
        assert statuses == {"a": "finished", "group/b": "ended", "killed": "killed", "going": "running"}
        with _serving(root) as dashboard:
            status, _, page = _ask(dashboard, "/")
    finally:
        lock.release()
    rows = re.findall(r'<tr><td><input type="checkbox" name="run" value="([^"]*)".*?</tr>', page)
    assert status == 200 and sorted(rows) == ["a", "going", "group/b", "killed"]
    assert "1:15" in page and page.count("1:15") == 1, "time left, of the one that is running"
    assert status_of(root / "going") == "ended"


def test_a_run_is_followed_without_reading_it_again(root):
    with _serving(root) as dashboard:
        assert _ask(dashboard, "/run?run=a")[0] == 200
        status, answer, text = _ask(dashboard, "/data?run=a")
        first = json.loads(text)
        assert status == 200 and first["runs"][0]["training"][0]["v"] == [10, 20]
        etag = answer.headers["ETag"]
        status, answer, text = _ask(dashboard, "/data?run=a", If_None_Match=etag)
        assert (status, text) == (304, "")
        file = dashboard.runs.record("a").file
        before = file._offset
        with (root / "a" / "metrics.jsonl").open("a") as opened:
            opened.write('{"step": 3, "time": 9e9, "kind": "training", "loss": 5.0, "position": 24}\n')
        status, answer, text = _ask(dashboard, "/data?run=a", If_None_Match=etag)
        now = json.loads(text)
        assert status == 200 and now["runs"][0]["training"][0]["v"] == [10, 20, 5]
        assert dashboard.runs.record("a").file is file and file._offset > before
        changed = {name for name in now["sections"] if now["sections"][name] != first["sections"][name]}
        assert changed == {"head", "values"}
        (root / "a" / "manifest.json").write_text('{"code": 1}')
        sections = json.loads(_ask(dashboard, "/data?run=a")[2])["sections"]
        assert {name for name in sections if sections[name] != now["sections"][name]} == {"files"}


def test_chosen_runs_are_overlaid(root):
    with _serving(root) as dashboard:
        status, _, page = _ask(dashboard, "/run?run=a&run=group%2Fb")
        assert status == 200 and "2 runs" in page and 'data-shows="1"' in page
        data = json.loads(_ask(dashboard, "/data?run=a&run=group%2Fb")[2])
        assert [run["name"] for run in data["runs"]] == ["a", "group/b"]


@pytest.mark.parametrize(
    "path",
    ["/run?run=..", "/run?run=../a", "/run?run=%2Fetc", "/run?run=a%2F..%2Fa", "/run?run=.", "/run", "/data?run=x",
     "/../a/metrics.jsonl", "/a/metrics.jsonl", "/%2e%2e/a", "/run/../a", "/run?run=a%00", "/run?run=no%20run"],
)  # fmt: skip
def test_nothing_but_runs_is_served(root, path):
    with _serving(root / "group" if path == "/run?run=../a" else root) as dashboard:
        assert _ask(dashboard, path)[0] == 404


def test_links_out_of_the_directory_are_not_followed(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    _run(elsewhere / "secret").finish("finished")
    (root / "linked").symlink_to(elsewhere / "secret")
    (root / "file").mkdir()
    (root / "file" / "metrics.jsonl").symlink_to(elsewhere / "secret" / "metrics.jsonl")
    (root / "a" / "config.yaml").symlink_to("/etc/passwd")
    with _serving(root) as dashboard:
        assert set(dashboard.runs.names()) == {"a", "group/b"}
        assert "root:" not in _ask(dashboard, "/run?run=a")[2]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_can_only_be_read(root, method):
    with _serving(root) as dashboard:
        status, answer, _ = _ask(dashboard, "/run?run=a", method)
        assert status == 405 and answer.headers["Allow"] == "GET, HEAD"
        status, answer, text = _ask(dashboard, "/run?run=a", "HEAD")
        assert (status, text) == (200, "") and int(answer.headers["Content-Length"]) > 1000


def test_every_answer_has_the_headers_of_security(root):
    with _serving(root) as dashboard:
        for path in ("/", "/run?run=a", "/data?run=a", "/nothing"):
            _, answer, _ = _ask(dashboard, path)
            assert all(answer.headers[name] == value for name, value in HEADERS.items())
            rules = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in rules and "frame-ancestors 'none'" in rules and "unsafe" not in rules


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200), ("evil.example", 403), ("localhost.evil", 403)],
)
def test_other_names_of_this_machine_are_refused(root, host, status):
    with _serving(root) as dashboard:
        assert _ask(dashboard, "/", Host=host)[0] == status


def test_beyond_this_machine_a_token_is_needed(root):
    with _serving(root, host="0.0.0.0") as dashboard:
        token = dashboard.url.partition("?token=")[2]
        assert len(token) >= 32
        for path in ("/", "/run?run=a", "/data?run=a", "/list", "/?token=", "/?token=" + token[:-1], "/?token=%FF"):
            status, _, text = _ask(dashboard, path)
            assert status == 403 and token not in text and "loss" not in text.partition("<main>")[2]
        status, answer, text = _ask(dashboard, f"/?token={token}")
        assert (status, answer.headers["Location"], text) == (303, "/", "")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert _ask(dashboard, "/run?run=a", Cookie=cookie.partition(";")[0])[0] == 200
        for wrong in ("trainkit=x", f"trainkit_{dashboard.port}=x", "\xff", f"other={token}"):
            assert _ask(dashboard, "/run?run=a", Cookie=wrong)[0] == 403
        assert _ask(dashboard, "/", Host="evil.example")[0] == 403


def test_tokens_are_new_each_time():
    assert Access("0.0.0.0", is_local=False).token != Access("0.0.0.0", is_local=False).token
    assert Access("127.0.0.1", is_local=True).token is None


def test_a_damaged_or_hostile_run_spoils_no_other(root):
    (root / "bad").mkdir()
    (root / "bad" / "metrics.jsonl").write_text("[1]\n")
    hostile = hostile_run(root)
    with _serving(root) as dashboard:
        status, _, page = _ask(dashboard, "/")
        assert status == 200 and "is no record of a run" in page and "<img src=x" not in page
        assert _ask(dashboard, "/run?run=bad")[0] == 500
        status, _, page = _ask(dashboard, f"/run?run={quote(hostile.name)}")
        assert status == 200 and "<img src=x" not in page
        assert _ask(dashboard, "/run?run=a")[0] == 200


def test_bad_arguments_are_one_line(root, tmp_path, capsys):
    assert main(["dashboard", str(tmp_path / "nowhere")]) == 2
    assert "is no directory" in capsys.readouterr().err
    assert main(["dashboard", str(root), "--port", "99999"]) == 2
    assert "--port=99999: must be from 0" in capsys.readouterr().err
    assert main(["dashboard", str(root), "--host", "no such host"]) == 2
    assert "has no address" in capsys.readouterr().err
    with _serving(root) as dashboard:
        assert main(["dashboard", str(root), "--port", str(dashboard.port)]) == 2
    assert "give another --port" in capsys.readouterr().err


def test_an_interrupt_ends_it_quietly(root):
    command = [sys.executable, "-m", "trainkit.cli", "dashboard", str(root), "--port", "0"]
    where = str(Path(__file__).parents[2])
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=where, env=os.environ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        port = int(re.findall(r":(\d+)/", said)[0])
        with socket.create_connection(("127.0.0.1", port)):
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
        assert (rest, process.wait(20)) == ("trainkit: the dashboard has ended\n", 0)
