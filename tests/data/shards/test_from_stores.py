"""Shards behind URLs: the same global batches as from this machine, whatever the store does to some requests."""

import pytest

from tests.data.shards.stores import bucket, own_settings
from tests.data.shards.test_text_shards import STEPS, global_hashes, make_shards, make_source, text
from tests.storage.faults import faulty
from tests.storage.servers import NO_MOTO, NO_NGINX, moto, nginx, serving
from trainkit.errors import StorageError
from trainkit.storage import locate
from trainkit.testing import run_ranks

needs_nginx = pytest.mark.skipif(nginx() is None, reason=NO_NGINX)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of shards, and the hashes of the global batches that are read from it on this machine."""
    tmp = tmp_path_factory.mktemp("shards")
    make_shards(make_source(tmp / "source"), {2: tmp / "made" / "texts"})
    loaded = text(tmp / "made" / "texts", tmp).load(progress=False)
    return tmp / "made", global_hashes(loaded.train)


@pytest.fixture(autouse=True)
def _settings(tmp_path):
    with own_settings(TRAINKIT_CACHE=tmp_path / "pieces", TRAINKIT_STORAGE_TIMEOUT_S=60):
        yield


@pytest.fixture
def faults(made, tmp_path):
    (tmp_path / "nginx").mkdir()
    with serving(tmp_path / "nginx", made[0]) as port, faulty(port) as found:
        yield found


def _of_rank(url, tmp_path, start):
    with own_settings(TRAINKIT_CACHE=tmp_path / "pieces"):
        train = text(url, tmp_path).load(progress=False).train
        return global_hashes(train, start=start)


@needs_nginx
@pytest.mark.parametrize("plan", [[], ["503", "cut", "short", "429", "ok"] * 3 + ["flip"]], ids=["well", "with faults"])
def test_batches_over_http_are_those_from_here(made, faults, tmp_path, plan):
    train = text(f"{faults.url}/texts", tmp_path).load(progress=False).train
    faults.plan = [*plan]
    assert global_hashes(train, world_size=2) == made[1]
    assert not faults.plan, "no request has met the last fault"


@needs_nginx
def test_each_shard_and_each_piece_is_asked_for_once(made, faults, tmp_path):
    train = text(f"{faults.url}/texts", tmp_path).load(progress=False).train
    faults.counts.clear()
    assert global_hashes(train) == made[1]
    num_shards = len([*(made[0] / "texts").glob("train-*.bin")])
    assert faults.counts["HEAD"] <= num_shards + 1, "their sizes, and that of the checksums"
    assert faults.counts["GET"] <= num_shards + 1, "shards of less than a piece, and the checksums"


@needs_nginx
def test_two_ranks_share_what_is_fetched_after_a_resume(made, faults, tmp_path):
    hashes = run_ranks(_of_rank, 2, f"{faults.url}/texts", tmp_path, 17)
    assert hashes == [made[1][17:]] * 2 and len(made[1]) == STEPS
    asked = faults.counts["GET"]
    assert _of_rank(f"{faults.url}/texts", tmp_path, 17) == made[1][17:]
    assert faults.counts["GET"] - asked < asked / 2, "the cache has not been used"


@needs_nginx
def test_a_store_that_always_gives_wrong_bytes_ends_it(made, faults, tmp_path):
    train = text(f"{faults.url}/texts", tmp_path).load(progress=False).train
    faults.always = "flip"
    with pytest.raises(StorageError, match=r"train[-.].* is damaged"):
        global_hashes(train)


@pytest.mark.skipif(moto() is None, reason=NO_MOTO)
def test_batches_from_s3_are_those_from_here(made, tmp_path):
    with bucket() as url:
        here, there = locate(made[0]), locate(url)
        for name in here.names():
            there.child(name).write(here.child(name).read())
        train = text(f"{url}/texts", tmp_path).load(progress=False).train
        assert global_hashes(train, world_size=4) == made[1]
