"""Shards of text: the samples of the files they were made of, on any ranks and workers, from here and from afar."""

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainkit
from tests.data.shards.far import FAR, FarLocation, locate_far
from tests.data.test_text import make_documents
from trainkit.data import Text
from trainkit.data.loader import Fetcher, stream
from trainkit.data.order import Order
from trainkit.data.shards import index as shard_index
from trainkit.data.shards import prepare as preparing
from trainkit.data.shards.index import ShardIndex, read_index
from trainkit.data.shards.layout import PIECE_BYTES
from trainkit.data.shards.prepare import prepare
from trainkit.errors import DataError, StorageError
from trainkit.testing import run_ranks

BATCH, STEPS, SEED = 16, 201, 5
SIZES = (1, 7, 64)  # of shards, in pieces of 64 KiB


def make_source(folder: Path, num: int = 9000) -> Path:
    documents = make_documents(num)
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(documents[: num // 2]))
    rows = documents[num // 2 - 50 :]  # some twice
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in rows))
    return folder


def make_shards(source: Path, folders: Mapping[int, Path]) -> None:
    """Shards of as many pieces of 64 KiB as each folder's key says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "MB", PIECE_BYTES)
        for size, folder in folders.items():
            prepare(source, folder, shard_mb=size, num_workers=1, settings={"vocab_size": 120}, progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The source, its shards by their size, and the data sets of the source, for all tests here."""
    tmp = tmp_path_factory.mktemp("shards")
    source = make_source(tmp / "source")
    make_shards(source, {size: tmp / str(size) for size in SIZES})
    plain = text(source, tmp, vocab_size=120).load(progress=False)
    return tmp, plain


def text(path: Any, tmp_path: Path, **settings: Any) -> Text:
    return Text(path=path, sequence_length=32, cache_dir=tmp_path / "cache", **settings)


def hash_of(batch: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(batch.items()):
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()


def global_hashes(dataset, world_size: int = 1, start: int = 0) -> list[str]:
    order = Order(len(dataset), SEED)
    ranks = [
        Fetcher(dataset, order, batch_size=BATCH, rank=rank, world_size=world_size, collate=None)
        for rank in range(world_size)
    ]
    hashes = []
    for step in range(start, STEPS):
        shares = [fetcher[step * BATCH] for fetcher in ranks]
        places = np.concatenate([share.positions.numpy() for share in shares])
        assert sorted(places) == list(range(step * BATCH, (step + 1) * BATCH))
        in_order = torch.from_numpy(np.argsort(places))
        whole = {name: torch.cat([share.data[name] for share in shares])[in_order] for name in shares[0].data}
        hashes.append(hash_of(whole))
    return hashes


@pytest.fixture(scope="module")
def reference(made):
    """Of the text without shards, which knows nothing of them."""
    return global_hashes(made[1].train)


def test_shards_are_of_different_numbers(made):
    tmp, _ = made
    numbers = [read_index(locate_far(tmp / str(size))).layouts["train"].num_shards for size in SIZES]
    assert numbers[0] > numbers[1] > 1 and numbers[2] == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_global_batches_are_those_of_the_text(made, reference, size, world_size):
    tmp, plain = made
    loaded = text(tmp / str(size), tmp).load(progress=False)
    assert len(set(reference)) == STEPS
    assert global_hashes(loaded.train, world_size) == reference
    assert loaded.fingerprints() == plain.fingerprints()
    assert {**loaded.describe()} == {**plain.describe()}


@pytest.mark.parametrize(("size", "world_size"), [(1, 4), (7, 2)])
def test_after_a_resume_at_17_on_other_ranks(made, reference, size, world_size):
    tmp, _ = made
    train = text(tmp / str(size), tmp).load(progress=False).train
    assert global_hashes(train, world_size, start=17) == reference[17:]


@pytest.mark.parametrize("num_workers", [2, 5])
def test_with_loader_workers_from_afar(made, reference, num_workers, monkeypatch):
    tmp, _ = made
    monkeypatch.setattr(shard_index, "locate", locate_far)
    train = text(f"{FAR}{tmp / '1'}", tmp).load(progress=False).train
    fetcher = Fetcher(train, Order(len(train), SEED), batch_size=BATCH, rank=0, world_size=1, collate=None)
    positions = range(0, STEPS * BATCH, BATCH)
    batches = stream(fetcher, positions, num_workers=num_workers, device=torch.device("cpu"), dtype=torch.float32)
    assert [hash_of(batch.data) for batch in batches] == reference


def _shares(path: str, cache: Path, start: int, num_steps: int) -> list[tuple[list[int], list[list[int]]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_index, "locate", locate_far)
        datasets = text(path, cache).load(progress=False)
    runtime = trainkit.Runtime(seed=SEED, device="cpu", tracker=trainkit.Tracker())
    steps = runtime.batches(datasets.train, batch_size=BATCH, start=start * BATCH, num_steps=num_steps)
    return [(batch.positions.tolist(), batch.data["tokens"].tolist()) for batch in steps]


@pytest.mark.parametrize(("world_size", "place"), [(2, ""), (4, FAR)])
def test_on_ranks_of_a_job(made, reference, world_size, place):
    tmp, _ = made
    hashes = []
    for step in zip(*run_ranks(_shares, world_size, f"{place}{tmp / '7'}", tmp, 3, 20), strict=True):
        rows = dict(pair for positions, tokens in step for pair in zip(positions, tokens, strict=True))
        whole = {"tokens": torch.tensor([rows[position] for position in sorted(rows)])}
        hashes.append(hash_of(whole))
    assert hashes == reference[3:23]


@pytest.mark.parametrize("form", ["apart", "padded", "pairs"])
@pytest.mark.parametrize("place", ["", FAR])
def test_every_form_of_documents(made, form, place, monkeypatch):
    tmp, _ = made
    monkeypatch.setattr(shard_index, "locate", locate_far)
    plain = text(tmp / "source", tmp, vocab_size=120, documents=form).load(progress=False)
    loaded = text(f"{place}{tmp / '1'}", tmp / f"other{len(place)}", documents=form).load(progress=False)
    assert loaded.fingerprints() == plain.fingerprints()
    for side in ("train", "held_out"):
        ours, theirs = getattr(loaded, side), getattr(plain, side)
        indices = np.random.default_rng(0).permutation(len(theirs))[:300].tolist()
        assert len(ours) == len(theirs)
        assert hash_of(ours.__getitems__(indices)) == hash_of(theirs.__getitems__(indices))
        ours.prefetch(np.array(indices))


def test_block_sizes_count_the_windows_that_begin_in_a_shard(made):
    tmp, _ = made
    train = text(tmp / "1", tmp).load(progress=False).train
    sizes, step = train.block_sizes, train.sequence_length - 1
    shard_of = np.arange(len(train)) * step // (PIECE_BYTES // 2)
    assert sizes.tolist() == np.bincount(shard_of, minlength=len(sizes)).tolist()
    chosen = text(tmp / "1", tmp, held_out_samples=5).load(progress=False).held_out
    assert len(chosen) == 5 and chosen.block_sizes is None


# -- from afar ---------------------------------------------------------------------------------------------------------


def far_train(tmp: Path, log: list[Any], monkeypatch) -> Any:
    monkeypatch.setattr(shard_index, "locate", lambda path: FarLocation(tmp / "1", log))
    return text("far", tmp).load(progress=False).train


def test_what_is_read_was_announced_just_before(made, monkeypatch):
    tmp, log = made[0], list[Any]()
    train = far_train(tmp, log, monkeypatch)
    fetcher = Fetcher(train, Order(len(train), SEED), batch_size=4, rank=1, world_size=2, collate=None)
    log.clear()
    announced: dict[tuple[str, int], int] = {}
    for step in range(100):
        before = len(log)
        fetcher[4 * step]
        for what, name, ranges in log[before:]:
            pieces = [(name, at) for start, stop in ranges for at in range(start, stop, PIECE_BYTES)]
            if what == "prefetch":
                announced.update({piece: step for piece in pieces if piece not in announced})
            elif step > 1 and not name.endswith(".sums"):  # two show which batches this process is asked for
                assert all(announced[piece] <= step for piece in pieces)
    assert announced


def test_a_flipped_byte_from_afar_names_the_shard(made, tmp_path, monkeypatch):
    tmp, log = made[0], list[Any]()
    train = far_train(tmp, log, monkeypatch)
    shard = tmp / "1" / "train-000002.bin"
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:100] + bytes([content[100] ^ 4]) + content[101:])
        with pytest.raises(
            StorageError, match=r"train-000002\.bin is damaged: bytes 0 to 65,536 .* copy the file again"
        ):
            train.__getitems__(list(range(len(train))))
    finally:
        shard.write_bytes(content)
    train.__getitems__(list(range(len(train))))


def test_checksums_that_are_damaged_are_no_checksums(made, monkeypatch):
    tmp, log = made[0], list[Any]()
    train, sums = far_train(tmp, log, monkeypatch), tmp / "1" / "train.sums"
    content = sums.read_bytes()
    try:
        sums.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(StorageError, match=r"train\.sums is damaged"):
            train[0]
    finally:
        sums.write_bytes(content)


def test_a_store_without_ranges_is_one_error(made, monkeypatch):
    tmp, read = made[0], FarLocation.read
    monkeypatch.setattr(shard_index, "locate", locate_far)
    train = text(f"{FAR}{tmp / '7'}", tmp).load(progress=False).train
    train[0]  # reads the checksums
    monkeypatch.setattr(FarLocation, "read", lambda self, start=0, stop=None: read(self))
    with pytest.raises(
        StorageError, match=r"train-000000\.bin: asked for 65,536 bytes .* use a store that answers ranges"
    ):
        train[0]


# -- on this machine ---------------------------------------------------------------------------------------------------


def copied(made, tmp_path: Path, size: int = 7) -> Path:
    target = tmp_path / "copy"
    target.mkdir()
    for file in (made[0] / str(size)).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_flipped_byte_is_found_by_verify_full(made, tmp_path):
    folder = copied(made, tmp_path)
    text(folder, tmp_path, verify="full").load(progress=False)
    shard = folder / "held_out-000000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    text(folder, tmp_path).load(progress=False)
    with pytest.raises(StorageError, match=r"held_out-000000\.bin is damaged: bytes 0 to"):
        text(folder, tmp_path, verify="full").load(progress=False)


def test_a_shard_that_is_short_or_missing_is_named(made, tmp_path):
    folder = copied(made, tmp_path)
    shard = folder / "train-000001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(StorageError, match=r"train-000001\.bin has .* bytes and should have"):
        text(folder, tmp_path).load(progress=False)
    shard.unlink()
    with pytest.raises(StorageError, match=r"train-000001\.bin: No such file"):
        text(folder, tmp_path).load(progress=False)


@pytest.mark.parametrize(
    "change", [lambda text: text.replace('"num_items": ', '"num_items": 1'), lambda text: text[:-9]]
)
def test_an_index_that_was_changed_is_refused(made, tmp_path, change):
    folder = copied(made, tmp_path)
    index = folder / "shards.json"
    index.write_text(change(index.read_text()))
    with pytest.raises(DataError, match=r"shards\.json is no index of shards"):
        text(folder, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 300}, r"data\.vocab_size=300: the shards in .* were made with 120; leave data\.vocab_size out"),
        ({"held_out": 0.1}, r"data\.held_out=0\.1: the shards in .* were made with 0\.02"),
        ({"lowercase": False}, r"data\.lowercase=False is not what"),
    ],
)
def test_settings_that_contradict_the_shards_are_refused(made, settings, message):
    tmp, _ = made
    with pytest.raises(DataError, match=message):
        text(tmp / "7", tmp, **settings).load(progress=False)


def test_shards_of_text_are_no_images(made):
    with pytest.raises(DataError, match=r"holds shards of text: use them with recipe=bert"):
        trainkit.data.Images(path=made[0] / "7")


def test_a_data_set_pickles_small_and_reads_again(made):
    train = text(made[0] / "7", made[0]).load(progress=False).train
    row = train[3]["tokens"]
    content = pickle.dumps(train)
    assert len(content) < 4000
    assert torch.equal(pickle.loads(content)[3]["tokens"], row)


def test_an_audit_reads_the_documents_of_shards(made, monkeypatch):
    tmp, plain = made
    sides = text(tmp / "1", tmp).sides()
    assert sides is not None and sides.num_held_out == plain.facts["held-out documents"]
    held_out = [entry.text for entry in sides.held_out()]
    of_source = text(tmp / "source", tmp, vocab_size=120).sides(progress=False)
    assert of_source is not None
    expected = [entry.text for entry in of_source.held_out()]
    assert [one.split()[:3] for one in held_out if one] and len(held_out) == len(expected)
    joined = ["".join(one.split()) for one in held_out if one and "[UNK]" not in one]
    assert set(joined) <= {"".join(one.split()) for one in expected if one} and len(joined) > len(expected) // 2
    assert sum(1 for _ in sides.train()) == plain.facts["documents"]
    monkeypatch.setattr(shard_index, "locate", locate_far)
    assert text(f"{FAR}{tmp / '1'}", tmp).sides() is None


def test_a_billion_samples_need_no_memory(made, tmp_path):
    """Of the layout of 64 billion tokens, only what a batch reads is there."""
    import tracemalloc
    from dataclasses import replace

    found: ShardIndex = read_index(locate_far(made[0] / "1"))
    layout = replace(found.layouts["train"], num_items=63 * 10**9, items_per_shard=32_000_000)
    huge = replace(found, folder=FarLocation(tmp_path, []), layouts={**found.layouts, "train": layout})
    from trainkit.data.packing import PackedTokens
    from trainkit.data.shards.tokens import ShardedTokens

    tracemalloc.start()
    windows = PackedTokens(ShardedTokens(huge, "train"), 64, start=2, pad=0, drop_last=True, content="x", end=3)
    order = Order(len(windows), SEED)
    windows.prefetch(order.indices(np.arange(5 * 10**9, 5 * 10**9 + 256)))
    sizes = windows.block_sizes
    assert sizes is not None and len(windows) == sizes.sum() == 10**9
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
