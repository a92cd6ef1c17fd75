"""Mixtures: each source has its share up to any position, in epochs of its own, from the position alone."""

import json
import re
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trainkit
from trainkit.config import compose
from trainkit.data import Datasets, Images, LeftOut, Mixture, Shuffle, Text
from trainkit.data.mixed_samples import MixedSamples, shares_of
from trainkit.data.mixture_order import MixtureOrder
from trainkit.data.order import Order
from trainkit.errors import ConfigError, DataError
from trainkit.job import train
from trainkit.testing import run_ranks

DEEP = 10**10
WEIGHTS = {"wiki": 5, "code": 2.5, "mail": 0.1}
SIZES = {"wiki": 300, "code": 70, "mail": 11}


def _order(weights, seed=0, size=50):
    shares = shares_of(dict.fromkeys(map(str, range(len(weights))), size), weights)
    return shares, MixtureOrder(shares, [Order(size + number, number) for number in range(len(weights))], seed)


some_weights = st.lists(st.integers(1, 1000) | st.floats(0.01, 9.0), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(weights=some_weights, start=st.sampled_from([0, 1, 4095, 70_001, DEEP, 10**15]), seed=st.integers(0, 3))
def test_counts_stay_within_the_bound_at_every_position(weights, start, seed):
    shares, order = _order(weights, seed)
    positions = np.arange(start, start + 9000)
    sources, counts = order.sources(positions)
    for number, share in enumerate(shares):
        before = order.counts(start)[number] + np.cumsum(sources == number) - (sources == number)
        expected = [share * position for position in (start, start + 8999)]
        ideal = float(expected[0] - int(expected[0])) + float(share) * np.arange(9000)
        assert np.abs(before - int(expected[0]) - ideal).max() < 3 + float(share) * len(shares)
        assert np.array_equal(counts[sources == number], before[sources == number])


def test_each_source_is_passed_through_in_epochs_of_its_own():
    mixed = MixedSamples({name: list(range(size)) for name, size in SIZES.items()}, WEIGHTS)
    drawn = mixed.order_of(7, Shuffle()).indices(np.arange(4000))
    begin = 0
    for size in SIZES.values():
        own = drawn[(drawn >= begin) & (drawn < begin + size)] - begin
        for epoch in range(len(own) // size):
            assert np.array_equal(np.sort(own[epoch * size : (epoch + 1) * size]), np.arange(size))
        begin += size
    assert len(drawn[drawn < 300]) // 300 >= 8


def test_the_place_of_a_rare_source_is_uniform():
    """A source of 1 in 64 has a sample in each 64 positions, anywhere in them."""
    shares = [Fraction(63, 64), Fraction(1, 64)]
    places = []
    for seed in range(40):
        order = MixtureOrder(shares, [Order(9, 0), Order(9, 1)], seed)
        sources, _ = order.sources(np.arange(4096))
        places += (np.flatnonzero(sources) % 64 // 8).tolist()
    counts = np.bincount(places, minlength=8)
    assert counts.sum() == 40 * 64
    assert ((counts - 320) ** 2 / 320).sum() < 24.3, "0.999 quantile of chi-squared with 7 degrees of freedom"


def test_a_deep_position_computes_one_stretch(monkeypatch):
    computed, compute = [], MixtureOrder._computed

    def counting(order, number):
        computed.append(number)
        return compute(order, number)

    monkeypatch.setattr(MixtureOrder, "_computed", counting)
    _, order = _order([3, 1])
    order.indices(np.arange(5 * DEEP, 5 * DEEP + 100))
    assert len(computed) == 1


class Numbers:
    """Samples that say which they are."""

    def __init__(self, name, size):
        self.fingerprint, self.size, self.told = name, size, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"x": torch.tensor([index, self.size])}

    def prefetch(self, indices):
        self.told += indices.tolist()


def _mixture():
    return Mixture({name: Numbers(name, size) for name, size in SIZES.items()}, WEIGHTS)


def _rows(start=0, num_steps=30, num_workers=0, shuffle="global"):
    runtime = trainkit.Runtime(seed=5, device="cpu")
    rows = {}
    options = {"num_workers": num_workers, "shuffle": shuffle}
    for batch in runtime.batches(_mixture(), batch_size=24, start=start, num_steps=num_steps, **options):
        for position, sample in zip(batch.positions.tolist(), batch.data["x"].tolist(), strict=True):
            rows[position] = tuple(sample)
    runtime.close()
    return rows


def _whole(world_size, *arguments):
    ranks = run_ranks(_rows, world_size, *arguments) if world_size > 1 else [_rows(*arguments)]
    return {position: row for rank in ranks for position, row in rank.items()}


@pytest.fixture(scope="module")
def alone():
    return _whole(1)


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (4, 0), (1, 2), (2, 2)])
def test_equal_on_any_ranks_and_workers(alone, world_size, num_workers):
    assert _whole(world_size, 0, 30, num_workers) == alone
    sizes = [size for _, size in alone.values()]
    assert [sizes.count(size) for size in SIZES.values()] == pytest.approx([473.7, 236.8, 9.5], abs=5)


@pytest.mark.parametrize("shuffle", ["global", "blocks"])
def test_a_resume_at_17_on_two_ranks_goes_on(shuffle):
    whole = _whole(1, 0, 30, 0, shuffle)
    assert _whole(2, 17 * 24, 13, 0, shuffle) == {p: row for p, row in whole.items() if p >= 17 * 24}


def test_sources_are_merged_in_the_order_of_the_batch():
    tensors = {"low": {"x": torch.arange(5)}, "high": {"x": torch.arange(100, 103)}}
    mixed = MixedSamples(tensors)
    assert mixed.__getitems__([7, 0, 5, 4])["x"].tolist() == [102, 0, 100, 4]
    assert [int(mixed[index]["x"]) for index in (0, 5, -1)] == [0, 100, 102]
    with pytest.raises(IndexError, match="sample 8 of 8"):
        mixed[8]
    words = MixedSamples({"a": {"word": ["x", "y"]}, "b": {"word": ["z"]}})
    assert words.__getitems__([2, 1])["word"] == ["z", "y"]
    with pytest.raises(ConfigError, match=r"samples of a and b cannot be in one batch: torch\.int64 of shape \[2\]"):
        MixedSamples({"a": torch.zeros(3, 2, dtype=torch.int64), "b": torch.zeros(3)}).__getitems__([0, 4])
    with pytest.raises(ConfigError, match=r"a and b cannot be in one batch: a dict of x and a dict of y"):
        MixedSamples({"a": {"x": torch.ones(2)}, "b": {"y": torch.ones(2)}}).__getitems__([0, 3])


def test_sources_are_told_what_is_asked_next():
    mixed = _mixture().samples()
    mixed.prefetch(np.array([1, 301, 2, 371]))
    assert [source.told for source in mixed.sources] == [[1, 2], [1], [1]]


def test_weights_decide_the_fingerprint():
    """A resumed run is told when its weights are others."""
    prints = {MixedSamples({"a": [1, 2], "b": [3]}, weights).fingerprint for weights in (None, [1, 1], [2, 2], [2, 1])}
    assert len(prints) == 2, "[1, 1] and [2, 2] are the same; by the number of samples it is [2, 1]"


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ({}, None, r"^sources=\{\}: must name the sources of a mixture; set sources="),
        ({"a": [1]}, {"a": 0}, r"weights\.a=0: must be a number above 0 for each of a; set weights\.a"),
        ({"a": [1], "b": [2]}, {"a": 1}, r"weights\.b=None: must be a number above 0"),
        ({"a": [1], "b": [2]}, {"a": 1, "bb": 2}, r"weights\.bb: there is no such source\. .*b"),
        ({"a": [1], "b": [2]}, [1, float("nan")], r"weights\.b=nan"),
        ({"a": [1], "b": [2]}, [1, 2, 3], r"weights=\[1, 2, 3\]: .* set 2 weights"),
        ({"a": [1], "b": [2]}, [True, 1], r"weights\.a=True"),
        ({"a": [1], "b": [2]}, [1, "2"], r"weights\.b=2: must be a number"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sources, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(sources, weights)


def test_more_that_cannot_be_mixed():
    with pytest.raises(ConfigError, match="weight of b is 1e-08 of the sum, less than one sample in 1,048,576"):
        Mixture({"a": [1], "b": [2]}, [1e8, 1]).samples()
    with pytest.raises(ConfigError, match="source b of a mixture is empty"):
        Mixture({"a": [1], "b": []}).samples()
    with pytest.raises(ConfigError, match="source a of a mixture is a Text, which has to be loaded"):
        Mixture({"a": Text()}).samples()
    with pytest.raises(ConfigError, match="source a of a mixture is a list, which is loaded already"):
        Mixture({"a": [1]}).load()
    with pytest.raises(ConfigError, match=r"data\.sources\.a\.pathh: there is no such key.*path"):
        Mixture({"a": {"pathh": "x"}}, base=Text())
    with pytest.raises(ConfigError, match=r"^data\.weights\.a=-1.*set data\.weights\.a"):
        Mixture({"a": {"vocab_size": 200}}, {"a": -1}, base=Text())
    with pytest.raises(DataError, match=r"^data\.sources\.a\.path=/no/such"):
        Mixture({"a": {"path": "/no/such"}}, base=Text())
    with pytest.raises(DataError, match=r"^data\.sources\.a\.held_out=2.*set data\.sources\.a\.held_out"):
        Mixture({"a": {"held_out": 2}}, base=Text())
    with pytest.raises(ConfigError, match=r"sources a and b of a mixture differ in classes"):
        Mixture({n: Datasets([1], [2], classes=(n,)) for n in "ab"}).load()
    runtime = trainkit.Runtime(device="cpu")
    with pytest.raises(ConfigError, match="a mixture and weights are both given"):
        runtime.batches(Mixture({"a": [1, 2]}), batch_size=1, weights=[1, 2])
    runtime.close()


# -- text -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, word in (("wiki", "river"), ("code", "return")):
        lines = (f'{{"text": "{word} {number} {word} and {number * 31 % 977}"}}\n' for number in range(900))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def _text_mixture(folder, **settings):
    base = Text(vocab_size=300, sequence_length=8, cache_dir=folder / "cache", **settings)
    return Mixture(
        {name: {"path": folder / f"{name}.jsonl"} for name in ("wiki", "code")}, {"wiki": 3, "code": 1}, base
    )


def test_text_of_several_corpora_has_one_tokenizer(texts):
    datasets = _text_mixture(texts).load(progress=False)
    tokenizer = datasets.tokenizer
    assert datasets.facts["share of wiki"].startswith("75 %, an epoch every ")
    assert datasets.facts["documents of code"] == 900 - datasets.facts["held-out documents of code"]
    runtime = trainkit.Runtime(seed=0, device="cpu")
    batches = runtime.batches(datasets.train, batch_size=32, shuffle=datasets.shuffle)
    shown = [tokenizer.decode(row) for batch in islice(batches, 20) for row in batch.tokens.tolist()]
    assert len(list(runtime.evaluation_batches(datasets.held_out, batch_size=8))) == -(-len(datasets.held_out) // 8)
    runtime.close()
    assert sum("return" in re.sub("##| ", "", row) for row in shown) == pytest.approx(160, abs=8)
    assert datasets.train.sequence_length == 8 and not datasets.train.is_padded
    assert datasets.train.epochs(3 * datasets.train.lengths["wiki"])["wiki"] == pytest.approx(2.25)


def test_documents_of_sources_have_numbers_of_their_own(texts):
    train = _text_mixture(texts).load(progress=False).train
    begin = train.lengths["wiki"]
    found = train.document_of(np.array([0, begin, 3]), np.full((3, 2), [1, 2]))
    wiki, code = (source.document_of(np.array([0]), np.array([[1, 2]])) for source in train.sources)
    assert found[0].tolist() == (2 * wiki[0]).tolist() and found[1].tolist() == (2 * code[0] + 1).tolist()
    assert len({*found[0].tolist()} & {*found[1].tolist()}) == 0


def test_a_mixture_of_text_has_several_lengths_and_sides(texts):
    mixture = _text_mixture(texts)
    short, long = mixture.load_lengths([8, 16], progress=False)
    assert short.train.sequence_length == 8 and long.train.sequence_length == mixture.sequence_length + 8
    sides = mixture.sides(progress=False)
    entries = list(sides.train())
    assert len(entries) == sides.num_train and {entry.name.split(":")[0] for entry in entries} == {"wiki", "code"}
    left_out = LeftOut(np.array([entries[0].key, entries[-1].key], np.uint64))
    without = mixture.without(left_out).load(progress=False)
    for name in ("wiki", "code"):
        before, after = (each.facts[f"documents of {name}"] for each in (short, without))
        assert after == before - 1
    again = mixture.with_tokenizer(short.tokenizer).load(progress=False)
    assert again.tokenizer.fingerprint == short.tokenizer.fingerprint


def test_documents_that_are_kept_apart_cannot_be_mixed(texts):
    with pytest.raises(ConfigError, match="wiki keeps documents apart, which a mixture cannot: set documents=joined"):
        _text_mixture(texts, documents="apart").load(progress=False)


def test_images_are_mixed_too(tmp_path):
    mixture = Mixture({"small": Images(resolution=8, cache_dir=tmp_path)}, base=None)
    datasets = mixture.load(progress=False)
    assert datasets.train.__getitems__([0, 1])["images"].shape == (2, 3, 8, 8)


def test_a_run_on_a_mixture_logs_its_epochs(texts):
    """What a checkpoint of it stores is trusted, and a resumed run uses its tokenizer."""
    sources = ", ".join(f"{name}: {{path: {texts / name}.jsonl}}" for name in ("wiki", "code"))
    config = compose(
        [
            "recipe=bert",
            "data=mixture",
            f"data.sources={{{sources}}}",
            "data.weights={wiki: 3, code: 1}",
            *("data.base.vocab_size=300", "data.base.sequence_length=16", f"data.base.cache_dir={texts / 'cache'}"),
            *("recipe.num_steps=4", "recipe.batch_size=16", "device=cpu", "schedule.warmup=1"),
            *("recipe.model.num_layers=1", "recipe.model.hidden_size=32", "recipe.model.num_heads=2"),
            f"run_dir={texts / 'run'}",
        ]
    )
    train(config)
    rows = [json.loads(line) for line in (texts / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "epochs_wiki" in row]
    share = logged[-1]["epochs_wiki"] / logged[-1]["epochs_code"]
    assert share == pytest.approx(3, rel=0.1), "the two have about as many windows"
    recipe = trainkit.load_recipe(texts / "run")
    assert recipe.datasets is not None and recipe.datasets.train.names == ["wiki", "code"]
    recipe.runtime.close()
