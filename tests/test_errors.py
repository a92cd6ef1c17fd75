"""What a user sees when something is wrong: one line that names it, exit code 2, and nothing left behind."""

import re
import time
from pathlib import Path

import pytest

from tests.jobs import ROOT, TOY, run, torchrun

LIMIT_S = 10.0  # asked of every error, on a machine that does nothing else


def _errors(result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("trainkit: error")]


def _check(arguments, ranks, says, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = [*arguments] if any("run_dir=" in a for a in arguments) else [*arguments, f"run_dir={tmp_path / 'run'}"]
    result = run(arguments, ranks, timeout_s=120)
    lines = _errors(result)
    assert len(lines) == 1, result.stderr
    assert re.search(says, lines[0]), lines[0]
    assert not re.search(r'File ".*/(trainkit|launch)/', result.stderr), "a traceback of ours"
    # One of a checkpoint may be gone the next time; torchrun reports any failure of a worker as 1.
    is_wrong = ranks is None and not any(text.startswith("resume=") for text in arguments)
    assert result.returncode == (2 if is_wrong else 1)
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "good.txt").write_text("A line of text.\n" * 50)
    return folder


@pytest.mark.parametrize("ranks", [None, 2])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["precison=bf16"], "Did you mean 'precision'"),
        (["recipe=brt"], "Did you mean 'bert'"),
        (["recipe=bert", "data.path=nowhere/at/all"], r"data\.path=.*nowhere/at/all"),
        (["recipe=bert", "precision=tf32"], "precision=tf32: the CPU cannot"),
        ([*TOY, "recipe.fault=two_backwards"], r"second backward\(\).* in one micro-batch"),
        ([*TOY, "resume=nowhere"], "nowhere: no such directory"),
        ([*TOY, "run_dir=/proc/trainkit"], r"run_dir=/proc/trainkit: cannot write there"),
        ([*TOY, "run_dir=s3://a/b"], r"run_dir=s3://a/b: must be a directory, .*; with copy_to=s3://a/b beside it"),
        (
            [*TOY, "recipe.fault=not_finite"],
            r"the loss of engine 'network' at step 1 \(position 0\) is nan\. It comes from .*lower optimizer\.lr",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(arguments, says, ranks, tmp_path):
    if any("fault" in a for a in arguments):  # found in the middle of a run, whose directory stays
        result = run([*arguments, f"run_dir={tmp_path / 'run'}"], ranks)
        assert len(_errors(result)) == 1 and re.search(says, _errors(result)[0]), result.stderr
        assert result.returncode == (2 if ranks is None else 1)
        return
    _check(arguments, ranks, says, tmp_path)


@pytest.mark.parametrize("ranks", [None, 2])
def test_an_empty_folder(ranks, tmp_path):
    (tmp_path / "empty").mkdir()
    _check(["recipe=bert", f"data.path={tmp_path / 'empty'}"], ranks, r"data\.path=.*empty", tmp_path)


@pytest.mark.parametrize("ranks", [None, 2])
def test_a_text_that_is_not_utf8(ranks, texts, tmp_path):
    (texts / "bad.txt").write_bytes("caf\xe9\n".encode("latin-1") * 40)
    _check(["recipe=bert", f"data.path={texts}"], ranks, r"bad\.txt.*UTF-8", tmp_path)


@pytest.mark.parametrize("ranks", [None, 2])
def test_an_unreadable_image(ranks, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"not a picture")
    _check(["recipe=progressive_gan", f"data.path={folder}"], ranks, r"0\.png", tmp_path)


def test_fewer_samples_than_ranks(tmp_path):
    _check([*TOY, "recipe.batch_size=1"], 2, r"batch_size=1 is the global batch, and 2 ranks", tmp_path)


@pytest.mark.parametrize("ranks", [None, 2])
@pytest.mark.parametrize("kind", ["foreign", "damaged"])
def test_a_directory_that_cannot_be_resumed_from(kind, ranks, tmp_path):
    theirs = tmp_path / "theirs"
    if kind == "foreign":
        theirs.mkdir()
        (theirs / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        _check([*TOY, f"resume={theirs}"], ranks, r"theirs holds no complete trainkit checkpoint", tmp_path)
        return
    assert run([*TOY, f"run_dir={theirs}"]).returncode == 0
    damaged = theirs / "checkpoints" / "step_00000024"
    file = damaged / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    _check([*TOY, f"resume={damaged}"], ranks, r"rank_00000\.safetensors has \d+ bytes instead of", tmp_path)


def test_a_rank_that_fails_alone_is_named(tmp_path):
    """Only the machine of rank 1 cannot read: the job ends, and the one that knows says so."""
    began = time.monotonic()
    result = torchrun([*TOY, f"run_dir={tmp_path / 'run'}", "+data.held_out.fails_on_rank=1"], 2)
    assert result.returncode == 1
    assert _errors(result) and "(rank 1)" in _errors(result)[0]
    assert time.monotonic() - began < 10 * LIMIT_S  # loose: a timing is no test, a hang is


def test_messages_about_a_value_have_one_form():
    """`key=value: must be ...`, never `key=value must be ...`."""
    sources = [path for folder in ("trainkit", "recipes") for path in (ROOT / folder).rglob("*.py")]
    wrong = re.compile(r"=\{[^{}\s]*\} (must|should|has to) ")
    assert wrong.search("num={num} must be 1") and not wrong.search("num={num}: must be 1")
    assert [str(path) for path in sources if wrong.search(path.read_text())] == []
