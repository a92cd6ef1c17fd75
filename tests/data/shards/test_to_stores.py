"""`trainkit data prepare --to URL`: the bytes of shards on a disk, whoever makes them, killed or not, without locks."""

import multiprocessing
import os
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.data import test_images as images
from tests.data.shards.stores import answering, own_settings
from tests.data.shards.stores import bucket as s3_bucket
from tests.data.shards.test_prepare import files, make, make_source, small_parts
from tests.storage.servers import NO_MOTO, moto
from trainkit.cli.main import main
from trainkit.data import Images, Text
from trainkit.data.shards.prepare import prepare
from trainkit.data.shards.work import Crew, Finished, Work
from trainkit.errors import DataError, StorageError
from trainkit.storage import locate
from trainkit.testing import run_ranks

__all__ = ["small_parts"]
needs_moto = pytest.mark.skipif(moto() is None, reason=NO_MOTO)


@pytest.fixture(autouse=True)
def _settings(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # children are forked
    with own_settings(TRAINKIT_CACHE=tmp_path / "cache", TRAINKIT_STORAGE_TIMEOUT_S=60):
        yield


@pytest.fixture
def memory(monkeypatch):
    """The URL of an empty store in the memory of this process."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return "memory://shards"


@pytest.fixture(scope="module")
def server():
    with s3_bucket() as url:
        yield url


@pytest.fixture
def bucket(server):
    return f"{server}/{os.urandom(4).hex()}"


def stored(url: str) -> dict[str, bytes]:
    """All that is in a folder of a store, which nothing hidden may be left in."""
    folder = locate(url)
    assert folder.child(".work").names() == []
    return {name: folder.child(name).read() for name in folder.names()}


def pictures(folder: Path) -> Path:
    for name, start in (("cats", 0), ("dogs", 30)):
        images.fill(folder / name, 30, start=start)
    return folder


def make_images(source: Path, to: str | Path) -> Any:
    return prepare(
        source, to, shard_mb=1, num_workers=1, settings={"resolution": 16, "labels": "folders"}, progress=False
    )


def test_a_store_gets_the_bytes_of_a_disk(tmp_path, memory):
    source = make_source(tmp_path / "source", 600)
    made = make(source, memory)
    assert not made.was_there and made.index.layouts["train"].num_shards > 1
    make(source, tmp_path / "here")
    assert stored(memory) == files(tmp_path / "here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "put", lambda *_: pytest.fail("it is all there"))
        assert make(source, memory).was_there
    with pytest.raises(DataError, match=r"vocab_size=130: the shards in memory://shards were made with 120"):
        make(source, memory, settings={"vocab_size": 130})


def test_images_get_the_bytes_of_a_disk(tmp_path, memory):
    source = pictures(tmp_path / "source")
    make_images(source, memory)
    make_images(source, tmp_path / "here")
    assert stored(memory) == files(tmp_path / "here")
    there, here = (Images(path=path, resolution=16).load(progress=False) for path in (memory, tmp_path / "here"))
    assert there.fingerprints() == here.fingerprints()
    for one, other in zip(
        there.train.__getitems__([3, 0]).values(), here.train.__getitems__([3, 0]).values(), strict=True
    ):
        assert one.equal(other)


def test_one_that_is_not_complete_is_no_data(tmp_path, memory):
    source = make_source(tmp_path / "source", 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainkit.data.shards.prepare_text.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(source, memory)
    with pytest.raises(DataError, match="are not complete: run the same trainkit data prepare again"):
        Text(path=memory)
    with pytest.raises(DataError, match=r"vocab_size=130: the shards in .* were begun with 120"):
        make(source, memory, settings={"vocab_size": 130})
    (source / "9.txt").write_text("Another text.")
    with pytest.raises(DataError, match="SOURCE has changed since the shards were begun"):
        make(source, memory)


def test_what_is_not_a_place_for_shards_is_said_at_once(tmp_path, memory):
    source = make_source(tmp_path / "source", 200)
    locate(memory).child("mine.txt").write(b"no")
    with pytest.raises(DataError, match=r"memory://shards: holds mine\.txt, which is no part of shards"):
        make(source, memory)
    with pytest.raises(DataError, match="SOURCE memory://shards: it is read from a disk; copy it to one first"):
        make(memory, tmp_path / "to")
    with pytest.raises(StorageError, match="must not carry credentials"):
        make(source, "s3://me:secret@bucket/x")


def test_the_command_shows_the_url(tmp_path, memory, capsys):
    source = make_source(tmp_path / "source", 200)
    words = ["data", "prepare", str(source), "--to", memory, "--workers", "1", "vocab_size=120"]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(f"train on them:\n  trainkit train recipe=bert data.path={memory}\n")
    assert main(words) == 0
    assert f"{memory} holds these shards already: nothing to do" in capsys.readouterr().err


# -- several processes -------------------------------------------------------------------------------------------------


def _killed_at(nth: int, build: Any) -> None:
    """SIGKILL to this process at the nth file that it writes, before or after that is there."""
    from trainkit.storage.s3_store import S3Store

    put, left = S3Store.put, [nth]

    def counted(self: Any, url: str, content: bytes) -> None:
        left[0] -= 1
        if not left[0] and nth % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, url, content)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    S3Store.put = counted  # type: ignore[method-assign]
    build()


@needs_moto
@pytest.mark.parametrize("kind", ["text", "images"])
def test_one_that_is_killed_at_any_moment_goes_on(tmp_path, bucket, kind):
    source = make_source(tmp_path / "source", 400) if kind == "text" else pictures(tmp_path / "source")
    build = partial(make if kind == "text" else make_images, source)
    context, draw, num_killed = multiprocessing.get_context("fork"), random.Random(2), 0
    for attempt in range(30):
        process = context.Process(target=_killed_at, args=(draw.randint(1, 12 + 6 * attempt), partial(build, bucket)))
        process.start()
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL)
        num_killed += process.exitcode != 0
        if process.exitcode == 0:
            break
    assert num_killed >= 3 and process.exitcode == 0
    build(bucket)
    build(tmp_path / "undisturbed")
    assert stored(bucket) == files(tmp_path / "undisturbed")


@needs_moto
def test_several_at_once_make_the_same_bytes(tmp_path, bucket):
    source, context = make_source(tmp_path / "source", 600), multiprocessing.get_context("fork")
    processes = [context.Process(target=make, args=(source, bucket)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    make(source, tmp_path / "alone")
    assert stored(bucket) == files(tmp_path / "alone")


def test_crews_without_locks_seldom_meet():
    def order(**given: bool) -> list[int]:
        made: list[int] = []

        def make(number: int, force: bool) -> bool:
            made.append(number)
            return True

        Crew(1, False, **given).run(range(100), make, "")
        return made

    assert order() == [*range(100)] and order(in_order=False) != order(in_order=False)
    assert sorted(order(in_order=False)) == order()


def test_what_another_process_made_is_not_made_again(memory):
    folder = locate(memory)
    one, other = (Work(folder.child(".work"), folder.child("goal")) for _ in range(2))
    assert one.make("phase", 3, lambda file: file.write(b"mine"))
    assert other.make("phase", 3, lambda _: pytest.fail("it is there")) and other.read("phase", 3) == b"mine"
    folder.child("goal").write(b"")
    with pytest.raises(Finished):
        other.make("phase", 4, lambda _: pytest.fail("all of it is there"))
    one.remove()
    with pytest.raises(Finished):
        other.read("phase", 3)


def _samples(path: Any, environment: dict[str, str]) -> list[list[int]]:
    with own_settings(**environment):
        import trainkit

        runtime = trainkit.Runtime(seed=3, device="cpu", tracker=trainkit.Tracker())
        train = Text(path=path, sequence_length=16).load(progress=False).train
        batches = runtime.batches(train, batch_size=8, num_steps=20)
        return [row for batch in batches for row in batch.data["tokens"].tolist()]


@needs_moto
def test_ranks_read_the_samples_of_shards_here(tmp_path, bucket):
    source = make_source(tmp_path / "source", 400)
    make(source, bucket)
    make(source, tmp_path / "here")
    environment = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "TRAINKIT_"))}
    expected = _samples(tmp_path / "here", environment)
    assert len(expected) == 160 and _samples(bucket, environment) == expected
    shares = run_ranks(_samples, 2, bucket, environment)
    of_step = [shares[rank][4 * step : 4 * step + 4] for step in range(20) for rank in range(2)]
    whole = [sorted(expected[8 * step : 8 * step + 8]) for step in range(20)]
    assert [sorted(of_step[2 * step] + of_step[2 * step + 1]) for step in range(20)] == whole


@needs_moto
def test_a_store_that_refuses_ends_it_at_once(tmp_path, bucket, monkeypatch):
    source = make_source(tmp_path / "source", 200)
    monkeypatch.setattr("trainkit.data.shards.prepare_text.TextBuild.state", lambda _: pytest.fail("it began to read"))
    with pytest.raises(StorageError, match="there is no bucket nowhere-at-all"):
        make(source, "s3://nowhere-at-all/x")
    refused = pytest.raises(StorageError, match="the store refuses access; set AWS_ACCESS_KEY_ID")
    with answering(403) as endpoint, own_settings(AWS_ENDPOINT_URL=endpoint), refused:
        make(source, bucket)
    with answering(404) as url, pytest.raises(StorageError, match="cannot be written: http and https are read only"):
        make(source, f"{url}/x")
