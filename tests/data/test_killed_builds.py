"""Builds of caches that are killed at any moment: they go on from their part, to the bytes of an undisturbed one."""

import multiprocessing
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data import test_images as images
from tests.data import test_text as text
from trainkit.data import WordPiece
from trainkit.data.parallel import IN_FLIGHT
from trainkit.data.pyramid import PyramidWriter
from trainkit.data.square import plain
from trainkit.errors import DataError


@pytest.fixture(autouse=True)
def noted_at_once(monkeypatch):
    monkeypatch.setattr("trainkit.data.partial_build.NOTE_INTERVAL_S", 0.0)


def _build_until(moment_s: float, build: Callable[[], object]) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, moment_s)
    build()


def _killed_until_it_ends(build: Callable[[], object], longest_s: float) -> int:
    """How often `build` was killed, after random times of work up to `longest_s` and more and more, before it ended."""
    context, draw = multiprocessing.get_context("fork"), random.Random(0)
    for num_killed in range(40):
        moment_s = draw.uniform(0.01, longest_s * (1 + num_killed))
        builder = context.Process(target=_build_until, args=(moment_s, build))
        builder.start()
        builder.join(60)
        if builder.is_alive():
            builder.kill()
            pytest.fail("a build that should have been killed or have ended after some seconds is waiting")
        if builder.exitcode == 0:
            return num_killed
        assert builder.exitcode == -signal.SIGPROF
    build()
    return 40


def _counter():
    """A number that a killed process has added to: without a lock, which a process killed within it would keep."""
    return multiprocessing.get_context("fork").Value("q", 0, lock=False)


def _left(cache: Path, built: Path) -> list[Path]:
    """What killed builds of `built` left that no other has taken over, which a build does with what says who builds it.

    What a kill left of a listing, which is made at one go, is removed after ten minutes.
    """
    return [path for path in cache.glob(f".{built.name}-*") if (path / "builder").is_file()]


def _files(directory: Path) -> dict[str, bytes]:
    """The content; a kill right after the directory was put in its place leaves marks that mean nothing there."""
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.name not in ("builder", "built")}


def test_text(tmp_path, monkeypatch):
    monkeypatch.setattr("trainkit.data.token_build._ENCODED_AT_ONCE", 16)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # children are forked
    path = text.write_text(tmp_path / "a.txt", text.make_documents(2000))
    encode, num_encoded = WordPiece.encode_batch, _counter()

    def counted(self, texts):
        num_encoded.value += len(texts)
        return encode(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(WordPiece, "encode_batch", counted)
        num_killed = _killed_until_it_ends(lambda: text.small(path, tmp_path, num_workers=1).load(progress=False), 0.02)
    (built,) = (tmp_path / "cache").glob("text-*")
    assert _left(tmp_path / "cache", built) == []
    text.small(path, tmp_path / "undisturbed", num_workers=1).load(progress=False)
    (whole,) = (tmp_path / "undisturbed" / "cache").glob("text-*")
    assert _files(built) == _files(whole)
    assert num_killed and num_encoded.value <= 2000 + 16 * (IN_FLIGHT + 1) * num_killed, (
        "what was noted is not tokenised again"
    )


def test_images(tmp_path, monkeypatch):
    folder = images.fill(tmp_path / "images", 120)
    images.noise(3).save(folder / "again.png")
    (folder / "050b.png").write_bytes(b"no image")
    num_decoded = _counter()

    def counted(*args):
        num_decoded.value += 1
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr("trainkit.data.decoding.plain", counted)
        specification = images.small(folder, tmp_path, on_unreadable="skip", num_workers=1)
        num_killed = _killed_until_it_ends(lambda: specification.load(progress=False), 0.01)
    (built,) = (tmp_path / "cache").glob("images-*")
    images.small(folder, tmp_path / "undisturbed", on_unreadable="skip").load(progress=False)
    (whole,) = (tmp_path / "undisturbed" / "cache").glob("images-*")
    assert _files(built) == _files(whole)
    assert _left(tmp_path / "cache", built) == []
    assert num_killed and num_decoded.value <= 121 + IN_FLIGHT * num_killed, "what was noted is not decoded again"


def test_one_killed_at_its_very_end_is_not_built_again(tmp_path, monkeypatch):
    folder, num_decoded = images.fill(tmp_path / "images", 20), _counter()

    def counted(*args):
        num_decoded.value += 1
        return plain(*args)

    def ends_here(aside, target):
        raise SystemExit

    monkeypatch.setattr("trainkit.data.decoding.plain", counted)
    with monkeypatch.context() as patch:
        patch.setattr("trainkit.cache._move", ends_here)
        patch.setattr("trainkit.cache.shutil.rmtree", lambda *args, **settings: None)  # which a kill would not do
        with pytest.raises(SystemExit):
            images.small(folder, tmp_path).load(progress=False)
    images.small(folder, tmp_path).load(progress=False)
    assert num_decoded.value == 20
    (built,) = (tmp_path / "cache").glob("images-*")
    images.small(folder, tmp_path / "undisturbed").load(progress=False)
    (whole,) = (tmp_path / "undisturbed" / "cache").glob("images-*")
    assert _files(built) == _files(whole)
    assert {"builder", "built"}.isdisjoint(file.name for file in built.iterdir())


def test_what_a_killed_build_could_not_read_can_be_an_error(tmp_path, monkeypatch):
    folder = images.fill(tmp_path / "images", 20)
    (folder / "000b.png").write_bytes(b"no image")
    append, taken = PyramidWriter.append, []

    def interrupted(writer, image, **settings):
        append(writer, image, **settings)
        taken.append(image)
        if len(taken) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(PyramidWriter, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.small(folder, tmp_path, on_unreadable="skip").load(progress=False)
    with pytest.raises(DataError, match=r"000b\.png cannot be read as an image"):
        images.small(folder, tmp_path).load(progress=False)
    assert len(taken) == 10
