"""Hosts, as --hosts and hostfiles name them; and the variables that a job carries to them."""

import pytest

from trainkit.errors import ConfigError
from trainkit.launcher.environment import carried
from trainkit.launcher.hosts import Host, parse_hosts, read_hostfile


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1:8,node2:4", [Host("node1", 8), Host("node2", 4)]),
        ("node1, me@node2.lan:2", [Host("node1"), Host("me@node2.lan", 2)]),
        ("10.0.0.1:8,[fe80::1]:8,[::1]", [Host("10.0.0.1", 8), Host("[fe80::1]", 8), Host("[::1]")]),
    ],
)
def test_hosts(text, hosts):
    assert parse_hosts(text) == hosts


def test_ssh_takes_an_address_without_brackets():
    assert [host.target for host in parse_hosts("me@[fe80::1]:8,node2")] == ["me@fe80::1", "node2"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("node1,,node2", "has an empty entry"),
        ("node1:0", "must be a number of at least 1"),
        ("node1:eight", "must be a number of at least 1"),
        ("node1:8,me@NODE1:8", "node1 stands twice"),
        ("-oProxyCommand=reboot:8", "'-oProxyCommand=reboot:8' is no host"),
        ("me@-oProxyCommand=reboot", "is no host"),
        ("node1;reboot", "is no host"),
        ("fe80::1:8", "is no host"),
    ],
)
def test_wrong_hosts(text, says):
    with pytest.raises(ConfigError, match=f"^--hosts={text}: .*{says}"):
        parse_hosts(text)


def test_forms_of_hostfiles(tmp_path):
    path = tmp_path / "hosts.txt"
    path.write_text("# DeepSpeed\nnode1 slots=8\n\nnode2 slots=4 max_slots=8  # Open MPI\nnode3:2\nnode4 max-slots=4\n")
    assert read_hostfile(path) == [Host("node1", 8), Host("node2", 4), Host("node3", 2), Host("node4")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("node1 slot=8", "slot=8: must be slots=N or max_slots=N. Did you mean 'slots'?"),
        ("node1 8", "8: must be slots=N or max_slots=N."),
        ("node1:8 slots=8", "slots=8: node1 has 8 slots already; give them once"),
        ("node1 slots=8 max_slots=4", "max_slots=4: fewer than the 8 slots of node1"),
        ("node0 slots=2", "node0 stands twice; give it once, with all its processes"),
    ],
)
def test_wrong_lines_of_hostfiles(line, says, tmp_path):
    path = tmp_path / "hosts.txt"
    path.write_text(f"node0 slots=2\n{line}\n")
    with pytest.raises(ConfigError) as error:
        read_hostfile(path)
    assert str(error.value) == f"{path}, line 2: {says}"


def test_hostfiles_without_hosts(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt: cannot be read: No such file"):
        read_hostfile(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nobody\n")
    with pytest.raises(ConfigError, match="names no host"):
        read_hostfile(tmp_path / "empty.txt")


def test_what_is_carried():
    here = {
        **{"NCCL_DEBUG": "INFO", "WANDB_API_KEY": "k", "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": "/x", "MINE": "1"},
        **{"RANK": "0", "SLURM_JOB_ID": "1", "TORCHELASTIC_RUN_ID": "r", "PET_NNODES": "2", "HOME": "/root"},
    }
    found = carried(here, ["MINE", "OTHER=a=b"])
    assert found == {
        **{"NCCL_DEBUG": "INFO", "WANDB_API_KEY": "k", "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": "/x"},
        **{"MINE": "1", "OTHER": "a=b"},
    }
    with pytest.raises(ConfigError, match="--env NONE: is not set here"):
        carried(here, ["NONE"])
