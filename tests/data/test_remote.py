"""Text and images behind a URL: the same data as on this machine, and what is said where they are not there."""

import io
import random
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.storage.faults import faulty
from tests.storage.servers import NO_NGINX, nginx, serving
from trainkit.data import Images, Text
from trainkit.errors import DataError
from trainkit.testing import run_ranks

pytestmark = pytest.mark.skipif(nginx() is None, reason=NO_NGINX)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    draw, words = random.Random(0), [f"w{number}" for number in range(300)]
    (root / "texts" / "more").mkdir(parents=True)
    for name in ("texts/a.txt", "texts/more/b.txt"):
        paragraphs = (" ".join(draw.choices(words, k=40)) for _ in range(150))
        (root / name).write_text("\n\n".join(paragraphs))
    rows = ("{" + f'"text": "{" ".join(draw.choices(words, k=40))}"' + "}" for _ in range(100))
    (root / "texts" / "c.jsonl").write_text("\n".join(rows) + "\n")
    (root / "texts" / "photo.heic").write_bytes(b"no text")
    (root / "pictures" / "class b").mkdir(parents=True)
    (root / "pictures" / "class a").mkdir()
    pixels = np.random.default_rng(0)
    with zipfile.ZipFile(root / "pictures.zip", "w") as archive:
        for number in range(40):
            image, buffer = Image.fromarray(pixels.integers(0, 256, (16, 16, 3), np.uint8)), io.BytesIO()
            image.save(buffer, "png")
            name = f"class {'ab'[number % 2]}/{number}.png"
            (root / "pictures" / name).write_bytes(buffer.getvalue())
            archive.writestr(name, buffer.getvalue())
    (root / "nothing").mkdir()
    (root / "nothing" / "x.doc").write_bytes(b"x")
    (root / "broken").mkdir()
    (root / "broken" / "x.jsonl").write_text('{"text": "fine"}\n{"other": 1}\n')
    return root


@pytest.fixture(scope="module")
def url(files, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("nginx"), files) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def _settings(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "6")
    monkeypatch.setenv("TRAINKIT_STORAGE_CACHE_GB", "1")


def _tokens(path):
    data = Text(path=path, sequence_length=16, vocab_size=200).load(progress=False)
    return [data.train[number]["tokens"].tolist() for number in range(len(data.train))]


def test_text_behind_a_url_gives_the_same_windows(url, files, tmp_path):
    assert _tokens(f"{url}/texts") == _tokens(files / "texts")
    assert not [*(tmp_path / "cache" / "copies").iterdir()]


def test_one_file_behind_a_url_is_read(url, files):
    assert _tokens(f"{url}/texts/a.txt") == _tokens(files / "texts" / "a.txt")


def test_text_that_was_read_is_not_read_again(files, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(files / "texts", own / "texts")
    (tmp_path / "nginx").mkdir()
    with serving(tmp_path / "nginx", own) as port, faulty(port) as faults:
        first = _tokens(f"{faults.url}/texts")
        faults.counts.clear()
        assert _tokens(f"{faults.url}/texts") == first
        assert faults.counts["GET"] == 2  # the two pages that list the folders
        (own / "texts" / "a.txt").write_text("\n\n".join(f"another {number}" for number in range(200)))
        assert _tokens(f"{faults.url}/texts") != first


@pytest.mark.parametrize("name", ["pictures", "pictures.zip"])
def test_images_behind_a_url_are_the_same(url, files, name):
    paths = (files / name, f"{url}/{name}")
    specifications = [Images(path=path, resolution=16, labels="folders", held_out=0.2) for path in paths]
    here, there = (images.load(progress=False) for images in specifications)
    assert here.facts == there.facts and here.classes == there.classes == ("class a", "class b")
    assert len(here.train) == len(there.train)
    for number in range(len(here.train)):
        assert np.array_equal(here.train[number]["images"], there.train[number]["images"])


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (Text, "gone", "data.path={}/gone does not exist"),
        (Images, "gone", "data.path={}/gone does not exist; set data.path to a folder or zip file of images"),
        (Text, "nothing", "data.path={}/nothing holds no text that can be read: found 1 .doc"),
        (Images, "nothing", "data.path={}/nothing holds no image: found 1 .doc"),
        (Text, "broken", "{}/broken/x.jsonl, line 2: no text in field 'text'"),
        (Images, "pictures/class a/0.png", "is one image; set data.path to a folder"),
        (Images, "texts/a.txt", "data.path={}/texts/a.txt is not a zip file that can be read"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_url(url, tmp_path, kind, name, message):
    with pytest.raises(DataError) as caught:
        kind(path=f"{url}/{name}").load(progress=False)
    assert message.format(url) in str(caught.value) and str(tmp_path) not in str(caught.value)


def _first_batches(url, cache, num_workers):
    import os

    os.environ.update(TRAINKIT_CACHE=cache, TRAINKIT_STORAGE_CACHE_GB="1")
    import trainkit
    from trainkit.data import Text

    runtime = trainkit.Runtime(seed=0)
    data = Text(path=url, sequence_length=16, vocab_size=200).load(progress=False)
    batches = runtime.batches(data.train, batch_size=8, num_steps=3, num_workers=num_workers)
    rows = [row.tolist() for batch in batches for row in batch.data["tokens"]]
    runtime.close()
    return rows


def test_the_global_batch_is_that_of_the_files_here(url, files, tmp_path):
    def by_step(ranks):
        share = 8 // len(ranks)
        return [[row for rows in ranks for row in rows[step * share : (step + 1) * share]] for step in range(3)]

    here = by_step(run_ranks(_first_batches, 1, files / "texts", str(tmp_path / "a"), 0))
    for world_size, num_workers in ((2, 0), (4, 2)):
        there = run_ranks(_first_batches, world_size, f"{url}/texts", str(tmp_path / f"b{world_size}"), num_workers)
        assert [sorted(rows) for rows in by_step(there)] == [sorted(rows) for rows in here]
