"""`trainkit topo`: shows, probes, plans, simulates and benches; its errors are one line."""

import contextlib
import io
import json
import os

import pytest

from tests.topology import shapes
from trainkit.cli.amounts import counts, num_bytes, sizes
from trainkit.cli.main import main
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks
from trainkit.topology.presets import preset_names
from trainkit.topology.topology import Topology


def _run(capsys, *arguments):
    code = main(["topo", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["", "show", "probe", "plan", "simulate", "advise", "bench"])
def test_help_shows_examples(capsys, command):
    with pytest.raises(SystemExit):
        main(["topo", *command.split(), "--help"])
    assert f"topo {command}" in capsys.readouterr().out.partition("examples:")[2]


# -- what users type ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("25MB", 25_000_000), ("100MiB", 100 * 2**20), ("1e6", 1_000_000), ("4 kb", 4000), ("0.5GiB", 2**29), ("7", 7)],
)
def test_sizes(text, expected):
    assert num_bytes(text, "--bytes") == expected


@pytest.mark.parametrize(
    "text", ["", "MB", "25XB", "0", "-3MB", "1.2.3MB", "nan", "inf", "1e99", "3 M B", "25MB..50MB"]
)
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match=r"--bytes='.*': must be a number .* such as 25MB"):
        num_bytes(text, "--bytes")


def test_ranges():
    assert counts("1..128", "--nodes") == [1, 2, 4, 8, 16, 32, 64, 128]
    assert counts("3..20", "--nodes") == [3, 6, 12, 20]
    assert counts("5..5", "--nodes") == [5]
    assert sizes("1MB..4MB", "--sizes") == [10**6, 2 * 10**6, 4 * 10**6]
    for text in ("0", "8..2", "1..", "a", "1,,2", "1.5", "-1", "1...4"):
        with pytest.raises(ConfigError, match=r"--nodes='"):
            counts(text, "--nodes")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "--preset", "dgx1"], "Did you mean 'dgx-1'?"),
        (["show", "--preset", "dgx-1", "--topology", "x.json"], "give only one of them"),
        (["show", "--topology", "nowhere.json"], "nowhere.json cannot be read"),
        (["show", "--preset", "dgx-1", "--output", "x.jpg"], "--output=x.jpg: must end in .svg"),
        (["show", "--preset", "dgx-1", "--output", "nowhere/x.svg"], "--output=nowhere/x.svg cannot be written"),
        (["show", "--preset", "dgx-1", "--nodes", "1..4"], "--nodes=1..4: must be one number"),
        (["plan", "--preset", "dgx-1", "--bytes", "25XB"], "--bytes='25XB'"),
        (
            ["plan", "--preset", "dgx-1", "--wire-dtype", "fp8"],
            "--wire-dtype=fp8: must be one of exact, fp16, bf16, int8",
        ),
        (["plan", "--preset", "dgx-1", "--ranks-per-host", "9"], "--ranks-per-host=9: must be from 1 to 8"),
        (["simulate", "--preset", "dgx-1", "--recipe", "bert-larg"], "Did you mean 'bert-large'?"),
        (["simulate", "--preset", "dgx-1", "--nodes", "4..2"], "--nodes='4..2'"),
        (["simulate", "--preset", "dgx-1", "--tflops", "-1"], "--tflops=-1.0: must be above 0"),
        (["simulate", "--preset", "dgx-1"], "precision=bf16: "),
        (["bench", "--sizes", "1KB..x"], "--sizes='x'"),
        (["bench", "--sizes", "1KB", "--device", "cpu", "--plan", "flt"], "Did you mean 'flat'?"),
    ],
)
def test_errors_are_one_line(capsys, arguments, says):
    code, _, err = _run(capsys, *arguments)
    assert code == 2 and says in err and err.count("\n") == 1 and err.startswith("trainkit: error: ")


# -- show and plan -----------------------------------------------------------------------------------------------------


def test_show_this_machine_and_draw_it(capsys, tmp_path):
    code, out, _ = _run(capsys, "show", "--ranks-per-host", 1, "--output", tmp_path / "topo.svg")
    assert code == 0 and ("gpu0" in out or "cpu0" in out)
    assert (tmp_path / "topo.svg").read_text().lstrip().startswith("<?xml")


def test_a_known_machine_has_nothing_to_mend(capsys):
    for name in preset_names():
        _, out, _ = _run(capsys, "show", "--preset", name)
        assert "warning: " not in out and "error: " not in out, name


def test_json_is_what_topology_reads(capsys, tmp_path):
    code, out, _ = _run(capsys, "show", "--preset", "dgx-1", "--nodes", 2, "--ranks-per-host", 4, "--json")
    topology = Topology.from_json(out)
    assert code == 0 and topology.world_size == 8 and len(topology.hosts) == 2
    (tmp_path / "two.json").write_text(out)
    assert _run(capsys, "show", "--topology", tmp_path / "two.json", "--json")[1] == out
    code, _, err = _run(capsys, "show", "--topology", tmp_path / "two.json", "--nodes", 2)
    assert code == 2 and "has 2 hosts; give a file with one" in err


def test_plan_says_what_it_chose_and_why(capsys, tmp_path):
    file = tmp_path / "slow.json"
    file.write_text(shapes.cpu_hosts(2, nic=0.025).to_json())
    code, out, _ = _run(capsys, "plan", "--topology", file, "--bytes", "25MB", "--wire-dtype", "int8")
    assert code == 0 and "4 ranks on 2 hosts, gloo, S = 25MB" in out
    (chosen,) = [line for line in out.splitlines() if line.startswith("→")]
    assert "int8 between them" in chosen and chosen.endswith("0.25 S")
    assert "chosen: hierarchical over 2 groups of 2, int8" in out and "less time than flat" in out
    (flat,) = [line for line in out.splitlines() if line.split()[:1] == ["flat"]]
    assert "1.00x" in flat and flat.endswith("1.50 S")
    code, everything, _ = _run(capsys, "plan", "--topology", file, "--all")
    assert everything.count("chunks of") > out.count("chunks of")
    code, out, _ = _run(capsys, "plan", "--preset", "dgx-h100")
    assert code == 0 and "chosen: flat" in out and "range: of 8 in 10 published" in out


def test_simulate_says_where_the_knee_is(capsys, tmp_path):
    arguments = ("simulate", "--recipe", "bert-large", "--nodes", "1..4")
    code, out, _ = _run(capsys, *arguments, "--preset", "workstation-2", "--output", tmp_path / "chart.svg")
    assert code == 0 and "knee: from 1 node on" in out and "network cards 4 x as fast, 4 nodes:" in out
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit() and "█" in line]
    assert [row[:2] for row in rows] == [["1", "2"], ["2", "4"], ["4", "8"]]
    assert "in brackets: the range of 8 in 10 published" in out
    assert "exposed communication" in (tmp_path / "chart.svg").read_text()
    code, out, _ = _run(capsys, *arguments, "--preset", "dgx-h100", "--ranks-per-host", 4)
    assert code == 0 and "4 devices a node" in out and "no knee up to 4 nodes" in out


# -- on ranks ----------------------------------------------------------------------------------------------------------


def _on_ranks(*arguments):
    from trainkit.topology import measure

    measure.MOST_BYTES = 1_000_000  # quick
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["topo", *arguments])
    return code, out.getvalue(), err.getvalue(), os.getpid()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_bench_on_ranks(world_size, tmp_path):
    file = tmp_path / "bench.json"
    arguments = ("bench", "--sizes", "1KB..4KB", "--device", "cpu", "--output", str(file))
    (code, out, _, _), *others = run_ranks(_on_ranks, world_size, *arguments)
    assert code == 0 and all(other[:3] == (0, "", "") for other in others)
    header, *rows = [line.split() for line in out.splitlines() if not line.startswith("#")]
    assert header[0] == "size" and header[-1] == "#wrong"
    assert [int(row[0]) for row in rows] == [1000, 2000, 4000] and {row[-1] for row in rows} == {"0"}
    for row, stored in zip(rows, json.loads(file.read_text())["rows"], strict=True):
        assert stored["algbw"] == pytest.approx(int(row[0]) / stored["time_us"] / 1e3)
        assert stored["busbw"] == pytest.approx(stored["algbw"] * 2 * (world_size - 1) / world_size)
        assert list(map(float, row[2:4])) == pytest.approx([stored["algbw"], stored["busbw"]], rel=1e-3)
        assert stored["num_wrong"] == 0


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_probe_on_ranks(world_size, tmp_path, capsys):
    file = tmp_path / "links.json"
    (code, out, _, _), *others = run_ranks(_on_ranks, world_size, "probe", "--device", "cpu", "--output", str(file))
    assert code == 0 and all(other[:2] == (0, "") for other in others)
    assert "comm.topology=" in out and f"cpu{world_size - 1}" in out
    found = Topology.read(file)
    assert found.world_size == world_size
    loopback = [link.source for link in found.hosts[0].links if link.kind == "loopback"]
    assert set(loopback) == {"measured" if world_size > 1 else "nominal"}
    assert _run(capsys, "show", "--topology", file)[0] == 0


@pytest.mark.parametrize("command", ["show", "plan", "simulate"])
def test_a_machine_is_made_of_the_cards_that_are_named(capsys, command):
    assert main(["topo", command, "--gpus", "4x3090"]) == 0
    assert "4x GeForce RTX 3090" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "dgx-1"], "--gpus and --preset: give only one of them"),
        (["--topology", "x.json"], "--gpus and --topology: give only one of them"),
        (["--ranks-per-host", "2"], "--gpus=4x3090 names the number of cards: leave out --ranks-per-host"),
    ],
)
def test_cards_are_not_named_beside_another_machine(capsys, options, message):
    assert main(["topo", "plan", "--gpus", "4x3090", *options]) == 2
    assert message in capsys.readouterr().err


def test_named_cards_are_joined_by_a_network_of_a_given_speed(capsys):
    assert main(["topo", "plan", "--gpus", "2x3090", "--nodes", "2", "--nic-gbit", "100"]) == 0
    output = capsys.readouterr()
    assert "assumed" not in output.err
    assert main(["topo", "plan", "--gpus", "2x3090", "--nodes", "2"]) == 0
    assert "state it: --nic-gbit 100" in capsys.readouterr().err
