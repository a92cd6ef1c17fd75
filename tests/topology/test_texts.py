"""Files of any form as hosts: JSON, NCCL's XML, nvidia-smi's matrices; what is none of these is said in one line."""

import io
import sys
from types import SimpleNamespace

import pytest

from tests.topology.hosts import DATA, links, matrix, nccl_xml
from tests.topology.shapes import cpu_hosts, dgx_1
from trainkit.errors import TopologyError
from trainkit.planning.advice import advise
from trainkit.topology.discover.texts import form_of, of_texts, read_files
from trainkit.topology.topology import NETWORK

LISTED = "GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1)\nGPU 1: NVIDIA GeForce RTX 4090 (UUID: GPU-2)\n"
PHB = matrix(2, lambda a, b: "PHB")
LEGEND = "\nLegend:\n\n  X    = Self\n  OK   = Status Ok\n  CNS  = Chipset not supported\n"


def peers(cell: str, num_gpus: int = 2) -> str:
    """The text of `nvidia-smi topo -p2p r`, as it is indented."""
    names = [f"GPU{i}" for i in range(num_gpus)]
    rows = [f" {a}\t" + "\t".join("X" if a == b else cell for b in names) + "\t" for a in names]
    return " \t" + "\t".join(names) + "\t\n" + "\n".join(rows) + "\n" + LEGEND


def written(tmp_path, **texts: str) -> list[str]:
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return [str(tmp_path / f"{name}.txt") for name in texts]


# -- forms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.iterdir()))
def test_every_text_is_of_its_form(name):
    text = (DATA / name).read_text()
    assert form_of(text, name) == ("xml" if name.endswith(".xml") else "matrix")
    (host,) = of_texts([(name, text)]).hosts
    assert host.devices


def test_the_same_host_from_three_forms():
    text = matrix(4, lambda a, b: "NV4" if a // 2 == b // 2 else "PHB")
    inside = [f'<nvlink target="0000:1{i ^ 1}:00.0" count="4" tclass="0x030200"/>' for i in range(4)]
    by_matrix, by_xml = of_texts([("m", text)]), of_texts([("x", nccl_xml(inside, "80"))])
    by_json = of_texts([("j", by_matrix.to_json())])
    assert by_json == by_matrix
    assert links(by_xml.hosts[0], "nvlink") == links(by_matrix.hosts[0], "nvlink")
    assert by_matrix.source == "m"
    assert by_matrix.world_size == 4


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "x: it is empty, and must be a topology file (JSON"),
        ("\n  \n", "x: it is empty"),
        (
            "bash: nvidia-smi: command not found\n",
            "x: it begins with 'bash: nvidia-smi: command not found', and",
        ),
        ("hosts: []\n", "x: it begins with 'hosts: []'"),
        ("{", "x:1:2: invalid JSON"),
        ("[1]", "x: must be an object"),
        ("<html></html>", "x:1:1: the outermost element is <html>; NCCL writes <system>"),
        ('<system version="1"></system>', "x:1:1: there is no <gpu> in it"),
        (PHB.replace("PHB", "PHX"), "x:2:10: 'PHX': must be one of"),
        ("GPU0 is slow\n", "x:1:1: the column of GPU0 has no row"),
    ],
)
def test_what_is_none_of_the_forms(text, words):
    with pytest.raises(TopologyError) as caught:
        of_texts([("x", text)])
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "======= ROCm System Management Interface =======\n==== Weight between two GPUs ====\n"
        "       GPU0         GPU1\nGPU0   0            15\nGPU1   15           0\n",
        "==== Link Type between two GPUs ====\n       GPU0   GPU1\nGPU0   0      XGMI\nGPU1   XGMI   0\n",
        "ACCESS TABLE:\n             0000:05:00.0 0000:15:00.0\n0000:05:00.0 ENABLED      ENABLED\n",
    ],
)
def test_matrices_of_amd_are_named_as_such(text):
    with pytest.raises(TopologyError, match=r"^x: it is the output of rocm-smi or amd-smi.*trainkit topo probe"):
        of_texts([("x", text)])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(TopologyError, match=r"nowhere.txt cannot be read: No such file or directory"):
        read_files([tmp_path / "nowhere.txt"])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(TopologyError, match=r"picture.png cannot be read: it is no text"):
        read_files([tmp_path / "picture.png"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_shells(tmp_path, encoding):
    (tmp_path / "host.txt").write_bytes(PHB.replace("\n", "\r\n").encode(encoding))
    assert len(read_files([tmp_path / "host.txt"]).hosts[0].devices) == 2


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(PHB.encode())))
    topology = read_files(["-"])
    assert topology.source == "standard input"
    assert topology.hosts[0].name == "standard input"


# -- several hosts -----------------------------------------------------------------------------------------------------


def test_several_files_are_several_hosts(tmp_path):
    with_card = "\tGPU0\tNIC0\nGPU0\tX\tPIX\nNIC0\tPIX\tX\n\n\nNIC Legend:\n\n  NIC0: mlx5_0\n"
    topology = read_files(written(tmp_path, node1=PHB, node2=with_card))
    assert [(host.name, len(host.devices)) for host in topology.hosts] == [("node1", 2), ("node2", 1)]
    assert topology.ranks_by_host() == ((0, 1), (2,))
    assert [list(links(host, "nic")) for host in topology.hosts] == [[("nic0", NETWORK)]] * 2
    assert {link.source for host in topology.hosts for link in host.links if link.kind == "nic"} == {"assumed"}
    assert "node1" in topology.source
    assert "node2" in topology.source


def test_one_host_gets_no_network_card(tmp_path):
    assert read_files(written(tmp_path, node1=PHB)).hosts[0].nics == ()


def test_hosts_of_one_name_are_told_apart(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "node.txt").write_text(PHB)
    topology = read_files([tmp_path / "a/node.txt", tmp_path / "b/node.txt"])
    assert [host.name for host in topology.hosts] == ["node-0", "node-1"]


def test_ranks_of_topology_files_keep_their_places():
    first, second = cpu_hosts(2), dgx_1()
    topology = of_texts([("a", first.to_json()), ("b", second.to_json())])
    assert [host.name for host in topology.hosts] == ["host0", "host1", "dgx-1"]
    assert topology.places[:4] == first.places
    assert [(place.host, place.device) for place in topology.places[4:]] == [(2, f"gpu{i}") for i in range(8)]


# -- peer access -------------------------------------------------------------------------------------------------------

OFF = {"gpu0 gpu1": "chipset not supported"}


@pytest.mark.parametrize(
    "texts",
    [
        [LISTED + PHB + LEGEND + peers("CNS")],
        [peers("CNS") + LISTED + PHB],
        [LISTED + PHB, peers("CNS")],
        [LISTED + PHB, "$ nvidia-smi topo -p2p r\n" + peers("CNS")],
        [LISTED + PHB + "\n$ nvidia-smi topo -p2p w\n" + peers("CNS")],
    ],
)
def test_peer_access_beside_the_links_of_its_host(texts):
    topology = of_texts([(f"t{i}", text) for i, text in enumerate(texts)])
    (host,) = topology.hosts
    assert host.facts["p2p_off"] == OFF
    assert host.facts["p2p"] is False
    assert {device.name for device in host.devices} == {"NVIDIA GeForce RTX 4090"}
    (found,) = [entry for entry in advise(topology) if "peer access" in entry.subject]
    assert "off for 1 of 1 pairs (chipset not supported)" in found.problem


@pytest.mark.parametrize(
    "cell, expected",
    [
        ("OK", {}),
        ("GNS", {"gpu0 gpu1": "GPU not supported"}),
        ("TNS", {"gpu0 gpu1": "topology not supported"}),
        ("NS", {"gpu0 gpu1": "not supported"}),
        ("DR", {"gpu0 gpu1": "disabled"}),
        ("U", {"gpu0 gpu1": "unknown"}),
    ],
)
def test_each_state_of_peer_access(cell, expected):
    (host,) = of_texts([("t", PHB), ("p", peers(cell))]).hosts
    assert host.facts["p2p_off"] == expected
    assert host.facts.get("p2p") is (None if cell == "OK" else False)


def test_peer_access_belongs_to_the_host_before():
    topology = of_texts([("a", PHB), ("b", PHB), ("p", peers("GNS"))])
    assert [host.facts.get("p2p_off") for host in topology.hosts] == [None, {"gpu0 gpu1": "GPU not supported"}]


def test_peer_access_between_bridged_pairs_only():
    bridged = matrix(4, lambda a, b: "NV4" if a // 2 == b // 2 else "PHB")
    cells = matrix(4, lambda a, b: "OK" if a // 2 == b // 2 else "CNS")
    (host,) = of_texts([("t", bridged), ("p", cells)]).hosts
    assert len(host.facts["p2p_off"]) == 4
    assert host.facts["p2p"] is False


@pytest.mark.parametrize(
    "texts, words",
    [
        ([peers("OK")], "t0:1:3: a matrix of `nvidia-smi topo -p2p`, which says nothing about links"),
        ([dgx_1().to_json(), peers("OK")], "t1:1:3: a matrix of `nvidia-smi topo -p2p`"),
        ([PHB, peers("OK", 3)], "t1:1:13: GPU2 is not a GPU of this host, which has gpu0, gpu1"),
        ([PHB, peers("OK"), peers("OK")], "t2: a second matrix of peer access of t0"),
        ([PHB, "nvidia-smi topo -p2p n\n" + peers("NS")], "t1:2:3: the matrix of `topo -p2p n`; give that of"),
        ([PHB, peers("OK").replace("X\tOK", "X\tYES")], "t1:2:9: 'YES': must be one of X, OK, CNS"),
    ],
)
def test_peer_access_that_cannot_be_used(texts, words):
    with pytest.raises(TopologyError) as caught:
        of_texts([(f"t{i}", text) for i, text in enumerate(texts)])
    assert str(caught.value).startswith(words)
