"""`launch` and `--processes`: several processes of this machine, without torchrun typed, and none left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import trainkit
from tests.jobs import ROOT, TOY, TRAIN, descendants, environment
from trainkit.cli.main import main
from trainkit.errors import ClusterError, ConfigError, DataError, UsageError

AT_A_PROMPT = """
import trainkit
factor = 3
class Net(__import__("torch").nn.Linear): pass
def train(steps):
    import torch
    runtime = trainkit.Runtime(strategy="ddp", precision="fp64", seed=0)
    torch.manual_seed(0)
    net = Net(4, 1)
    engine = runtime.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    data = torch.randn(48, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for batch in runtime.batches(data, batch_size=16 * factor, num_steps=steps):
        engine.backward(engine(batch.data).square().mean())
        engine.step()
    print(f"trained by {runtime.ranks.rank}\\n", end="", flush=True)  # one write: ranks print at the same time
    return engine.module.weight.detach()

"""


@pytest.fixture(autouse=True)
def none_is_left():
    yield
    deadline = time.monotonic() + 10
    ours = "from trainkit.distributed.processes import work"
    while left := [pid for pid in descendants(os.getpid()) if ours in _command(pid)]:
        assert time.monotonic() < deadline, f"{left} are left"
        time.sleep(0.1)


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return ""


def _where(start):
    return start + int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _fail(rank, how):
    if int(os.environ["RANK"]) == rank:
        how()
    time.sleep(60)


def _data_error():
    raise DataError("there is no such folder")


class _TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


def _cannot_be_copied():
    raise _TwoArguments("so", "what")


def _killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_by_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # DeepSpeed leaves it in a process that has used it alone
    before = signal.getsignal(signal.SIGINT), dict(os.environ)
    assert trainkit.launch(_where, 10, processes=4) == [(10, 4), (11, 4), (12, 4), (13, 4)]
    assert (signal.getsignal(signal.SIGINT), dict(os.environ)) == before


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        (_data_error, DataError, "there is no such folder"),
        (_cannot_be_copied, ClusterError, "(?s)rank 1 of 2 raised.*_TwoArguments: so what"),
        (_killed, ClusterError, "rank 1 of 2 was killed by SIGKILL .*before _fail returned"),
        (lambda: sys.exit(7), ClusterError, "rank 1 of 2 ended with exit code 7 before _fail returned"),
    ],
)
def test_what_a_rank_raises_is_raised_here(how, kind, says):
    begun = time.monotonic()
    with pytest.raises(kind, match=says) as caught:
        trainkit.launch(_fail, 1, how, processes=2)
    assert time.monotonic() - begun < 50, "waited for the other rank"
    if kind is DataError:
        assert "raised by rank 1 of 2:\nTraceback" in caught.value.__notes__[0]


def test_what_cannot_be_copied_is_named():
    lock = threading.Lock()
    says = r"<lambda>, with its arguments .* cannot be copied .*lock.*: create such objects inside"
    with pytest.raises(UsageError, match=says):
        trainkit.launch(lambda: lock.locked(), processes=2)


def test_a_function_of_a_prompt_trains_as_one_process_does():
    code = f"{AT_A_PROMPT}\nprint('weights', [w.tolist() for w in trainkit.launch(train, 5, processes=2)])\n"
    done = subprocess.run(
        [sys.executable, "-"], input=code, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    weights = json.loads(done.stdout.partition("weights ")[2])
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    data = torch.randn(48, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(5):  # a step takes all samples, in whatever order
        optimizer.zero_grad()
        net(data).square().mean().backward()
        optimizer.step()
    expected = net.weight.detach().expand(2, 1, 4)
    torch.testing.assert_close(torch.tensor(weights, dtype=torch.float64), expected, rtol=1e-12, atol=1e-12)
    assert "trained by 0" in done.stdout and "trained by 1" in done.stdout


def test_in_a_notebook(monkeypatch):
    """A real kernel: cells define the function, an interrupt and an error reach the cell, the kernel goes on."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # a kernel that finds it shows nothing of what processes print
    cells = [
        AT_A_PROMPT,
        "len(trainkit.launch(train, 2, processes=2))",
        "def bad():\n    raise ValueError('no good')\ntrainkit.launch(bad, processes=2)",
        "import os, time, signal, threading\n"
        "threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "trainkit.launch(lambda: time.sleep(60), processes=2)",
        "[r for r in trainkit.launch(lambda: int(os.environ['RANK']), processes=4)]",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client.NotebookClient(book, timeout=120, allow_errors=True, kernel_name="python3").execute()
    outputs = [cell.outputs for cell in book.cells]
    assert "trained by 1" in "".join(output.get("text", "") for output in outputs[1])
    assert outputs[1][-1]["data"]["text/plain"] == "2"
    assert (outputs[2][-1]["ename"], outputs[2][-1]["evalue"]) == ("ValueError", "no good")
    assert "raised by rank" in "".join(outputs[2][-1]["traceback"])
    assert outputs[3][-1]["ename"] == "KeyboardInterrupt"
    assert outputs[4][-1]["data"]["text/plain"] == "[0, 1, 2, 3]"


def test_a_caller_that_is_killed_leaves_none(tmp_path):
    code = (
        "import os, time, trainkit\n"
        "def wait(path):\n    open(path + os.environ['RANK'], 'w').write(str(os.getpid()))\n    time.sleep(100)\n"
        f"trainkit.launch(wait, {str(tmp_path / 'rank')!r}, processes=2)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environment()) as process:
        deadline = time.monotonic() + 60
        while not all((path := tmp_path / f"rank{rank}").exists() and path.read_text() for rank in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    pids = [int((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    while any("trainkit.distributed.processes" in _command(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} are left"
        time.sleep(0.1)


@pytest.mark.parametrize("processes", [0, -1, "two", True, 1.5])
def test_a_wrong_number(processes):
    with pytest.raises(ConfigError, match=rf"processes={processes}: must be auto \(one for each GPU\) or a number"):
        trainkit.launch(_where, 0, processes=processes)


@pytest.mark.parametrize("variable", ["RANK=0", "TORCHELASTIC_RUN_ID=x", "SLURM_STEP_NUM_TASKS=2"])
def test_not_in_a_process_of_a_job(variable, monkeypatch, capsys):
    monkeypatch.setenv(*variable.split("="))
    assert main(["train", "--processes", "2", "recipe=bert"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("trainkit: error: --processes=2 starts processes") and variable in err
    assert err.count("\n") == 1
    with pytest.raises(UsageError, match="processes=2"):
        trainkit.launch(_where, 0, processes=2)


def test_a_mistake_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "trainkit.cli", "train", "--processes=2", "recipe=brt"],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("trainkit: error: recipe=brt: must be one of")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_saves_and_the_same_command_ends_the_run(tmp_path):
    run_dir = tmp_path / "run"
    job = [*TOY, "recipe.num_steps=300", "log_every=1", "save_every=null", "evaluate_every=null", f"run_dir={run_dir}"]
    command = [sys.executable, str(TRAIN), "--processes", "2", *job]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=pipe, stderr=pipe, text=True) as process:
        metrics = run_dir / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count("\n") < 10:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, err
    assert "SIGINT: ends after this step, and saves first" in err and "Traceback" not in err
    assert len(list((run_dir / "checkpoints").iterdir())) == 1 and "2 ranks" in out
    again = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert (run_dir / "checkpoints" / "step_00000300").is_dir()
