"""Options of `trainkit launch` that cannot be used are one line, before any host is asked."""

import pytest

from trainkit.cli.main import main


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["recipe=bert"], "--hosts or --hostfile is missing; type --hosts node1:8,node2:8"),
        (["--hosts", "a", "--at-least", "0.7"], "--at-least: goes with --check"),
        (["--hosts", "a", "--check", "--at-least", "7"], "--at-least=7.0: must be above 0, and at most 1"),
        (["--hosts", "a", "--check", "--at-least", "nan"], "--at-least=nan: must be above 0, and at most 1"),
        (["--hosts", "a", "--check", "recipe=bert"], "--check: takes no configuration, and was given recipe=bert"),
        (["--hosts", "a", "--max-restarts", "-1"], "--max-restarts=-1: must be 0 or more"),
        (["--hosts", "a", "--shutdown-timeout", "0"], "--shutdown-timeout=0.0: must be above 0"),
        (["--hosts", "a", "--ssh", " "], "--ssh: is empty"),
        (["--hosts", "a", "--check", "--rdzv-endpoint", "b:x"], "--rdzv-endpoint=b:x: must be HOST or HOST:PORT"),
        (["--hosts", "a", "--check", "--rdzv-endpoint", "b:70000"], "with a port from 1 to 65535"),
        (["--hosts", "a", "--check", "--env", "NOWHERE_SET"], "--env NOWHERE_SET: is not set here"),
        (["--hosts", "a:b", "--check"], "a:b: the number of processes must be a number of at least 1"),
        (["--hostfile", "/none", "--check"], "--hostfile=/none: cannot be read: No such file or directory"),
    ],
)
def test_options_that_cannot_be_used(words, says, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert main(["launch", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("trainkit: error: ") and says in err


def test_hosts_and_a_hostfile_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as error:
        main(["launch", "--hosts", "a", "--hostfile", "b"])
    assert error.value.code == 2 and "not allowed with argument --hosts" in capsys.readouterr().err


def test_a_plan_of_the_check(capsys):
    assert main(["launch", "--check", "--hosts", "a:2,me@b:2", "--rdzv-endpoint", "[fe80::1]:29400", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    agents = [line for line in lines if "which starts there" in line]
    assert [line.partition("--rdzv-conf=")[2].partition(" ")[0] for line in agents] == ["is_host=1", "is_host=0"]
    for line in agents:
        assert "--rdzv-endpoint=[fe80::1]:29400 " in line.replace("'", "")
        assert "--nnodes=2 --nproc-per-node=2 --max-restarts=0" in line
        assert line.endswith("-m trainkit.cli launch --check --device auto")
