"""`trainkit topo --topology` with what other programs print: nvidia-smi's matrices and NCCL's XML, piped or in files.

Its errors are one line."""

import io
import sys
from types import SimpleNamespace

import pytest

from tests.topology.hosts import matrix, nccl_xml
from trainkit.cli.main import main
from trainkit.topology.topology import Topology

LISTED = "".join(f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i})\n" for i in range(8))
HGX = LISTED + matrix(8, lambda a, b: "NV18")
WEAK = LISTED + matrix(8, lambda a, b: "NV16" if 3 in (a, b) else "NV18")
BOX = matrix(4, lambda a, b: "PHB")


def _run(capsys, *arguments):
    code = main(["topo", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def files(tmp_path):
    texts = {"node1": HGX, "node2": HGX, "weak": WEAK, "box": BOX, "dump": nccl_xml([""] * 4)}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return {name: tmp_path / f"{name}.txt" for name in texts}


def test_show_reads_a_pipe(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(WEAK.encode())))
    code, out, _ = _run(capsys, "show", "--topology", "-")
    assert code == 0 and "8 x NVIDIA H100" in out and "read from standard input" in out
    assert "warning: NVLink of gpu3 (NVIDIA H100 80GB HBM3)" in out


@pytest.mark.parametrize("name", ["node1", "box", "dump"])
def test_what_is_shown_as_json_is_read_again(capsys, files, tmp_path, name):
    code, out, _ = _run(capsys, "show", "--topology", files[name], "--json")
    (tmp_path / "again.json").write_text(out)
    assert code == 0 and _run(capsys, "show", "--topology", tmp_path / "again.json", "--json")[1] == out


def test_several_files_are_several_hosts(capsys, files):
    arguments = ("plan", "--bytes", "64GB", "--topology", files["node1"], "--topology", files["node2"])
    code, out, err = _run(capsys, *arguments)
    assert code == 0 and "16 ranks on 2 hosts, nccl" in out
    (line,) = err.splitlines()
    assert line.startswith("trainkit: hint: speed of nic0: unknown: 1.2 GB/s is assumed, as NCCL does")
    code, fast, err = _run(capsys, *arguments, "--nic-gbit", 400)
    assert code == 0 and err == ""
    assert _seconds(out) / _seconds(fast) == pytest.approx(40, rel=0.1)


def _seconds(out: str) -> float:
    """Of the flat plan."""
    (row,) = [line.removeprefix("→").split() for line in out.splitlines() if "flat" in line.split()[:2]]
    return float(row[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[row[2]]


def test_hosts_like_the_one_of_a_file(capsys, files):
    code, out, _ = _run(capsys, "show", "--topology", files["box"], "--nodes", 2, "--nic-gbit", 100, "--json")
    topology = Topology.from_json(out)
    assert code == 0 and topology.world_size == 8
    assert {link.bandwidth_gb_per_s for host in topology.hosts for link in host.links if link.kind == "nic"} == {12.0}
    code, out, err = _run(capsys, "simulate", "--topology", files["node1"], "--nodes", "1..4")
    assert code == 0 and "8 devices a node" in out and "speed of nic0: unknown" in err
    code, _, err = _run(capsys, "simulate", "--topology", files["node1"], "--nodes", "1")
    assert code == 0 and err == ""


def test_plan_and_simulate_name_a_weak_gpu(capsys, files):
    for command in (("plan",), ("simulate", "--nodes", "1")):
        code, _, err = _run(capsys, *command, "--topology", files["weak"])
        assert code == 0 and err.count("\n") == 1
        assert err.startswith("trainkit: warning: NVLink of gpu3 (NVIDIA H100 80GB HBM3): 16 of the 18 NVLinks")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "--topology", "{dir}/nothing.txt"], "nothing.txt: it is empty, and must be a topology file (JSON"),
        (["show", "--topology", "{dir}/none.txt"], "none.txt cannot be read: No such file"),
        (["show", "--topology", "{dir}/box.txt", "--nic-gbit", "100"], "--nic-gbit=100: there is no network card of"),
        (["show", "--preset", "dgx-1", "--nic-gbit", "100"], "--nic-gbit=100: there is no network card of unknown"),
        (["show", "--topology", "{dir}/box.txt", "--nic-gbit", "-1"], "--nic-gbit=-1.0: must be a number above 0"),
        (
            ["show", "--topology", "{dir}/box.txt", "--topology", "{dir}/weak.txt", "--nodes", "2"],
            "weak.txt has 2 hosts; give a file with one",
        ),
        (["simulate", "--topology", "{dir}/box.txt", "--topology", "{dir}/weak.txt"], "has 2 hosts; give a file with"),
    ],
)
def test_errors_are_one_line(capsys, files, tmp_path, arguments, says):
    (tmp_path / "nothing.txt").write_text("")
    code, _, err = _run(capsys, *(word.format(dir=tmp_path) for word in arguments))
    assert code == 2 and says in err and err.count("\n") == 1 and err.startswith("trainkit: error: ")
