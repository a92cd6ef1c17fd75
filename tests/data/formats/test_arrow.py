"""Directories of Hugging Face datasets are read row by row, as that library reads them."""

import json
from typing import Any

import numpy as np
import pyarrow
import pytest

from tests.data.formats import samples
from tests.data.formats.test_written_by_peers import same
from trainkit.data import open_dataset
from trainkit.errors import DataError

datasets = pytest.importorskip("datasets", reason="the datasets library writes what is read")
NUM = 2500  # more than the thousand rows of a record batch


def made() -> Any:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["fox", "hill", "sky"]),
            "tokens": datasets.Sequence(datasets.Value("int32")),
            "ratio": datasets.Value("float64"),
            "picture": datasets.Image(),
            "maybe": datasets.Value("string"),
            "nested": {"a": datasets.Value("int64"), "b": datasets.Sequence(datasets.Value("string"))},
        }
    )
    columns = {
        "text": [samples.text(number) for number in range(NUM)],
        "label": [number % 3 for number in range(NUM)],
        "tokens": [samples.tokens(number) for number in range(NUM)],
        "ratio": [number / 3 for number in range(NUM)],
        "picture": [samples.picture(number) for number in range(NUM)],
        "maybe": [None if number % 2 else "yes" for number in range(NUM)],
        "nested": [{"a": number, "b": ["é"] * (number % 3)} for number in range(NUM)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrow") / "saved"
    made().shuffle(seed=1).select(range(2200)).save_to_disk(folder, num_shards=3)
    return folder


def test_rows_are_those_of_datasets(saved):
    theirs, ours = datasets.load_from_disk(saved), open_dataset(saved)
    assert len(ours) == len(theirs) == 2200 and len(ours.block_sizes) == 3

    def expected(index: int) -> dict[str, Any]:
        row = theirs[index]
        return {**row, "tokens": np.array(row["tokens"], np.int32)}  # they have lists, which are not collated

    chosen = [*range(0, 2200, 97), 999, 1000, 2199, -1, -2200]
    assert all(same(ours[index], expected(index)) for index in chosen)
    assert all(same(row, expected(index)) for index, row in zip(chosen, ours.__getitems__(chosen), strict=True))
    assert open_dataset(saved, columns=["label"])[7] == {"label": theirs[7]["label"]}


def test_rows_that_are_chosen_by_indices_are_found(tmp_path, saved):
    """As datasets before 3 saved a selection: an Arrow stream of numbers beside the rows."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = pyarrow.table({"indices": pyarrow.array([5, 2100, 0, 5, 999], pyarrow.uint64())})
    with pyarrow.ipc.new_stream(tmp_path / "indices.arrow", table.schema) as stream:
        stream.write_table(table)
    state = json.loads((tmp_path / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "state.json").write_text(json.dumps(state))
    ours, rows = open_dataset(tmp_path, columns=["text"]), open_dataset(saved, columns=["text"])
    assert [*ours] == [rows[number] for number in (5, 2100, 0, 5, 999)]
    assert ours.block_sizes.tolist() == [5]
    with pyarrow.ipc.new_stream(tmp_path / "indices.arrow", table.schema) as stream:
        stream.write_table(pyarrow.table({"indices": pyarrow.array([2200], pyarrow.uint64())}))
    with pytest.raises(DataError, match=r"indices\.arrow names rows that are not there"):
        open_dataset(tmp_path)


def test_empty_sets_have_no_samples(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["a", "b"]})
    data.select([]).save_to_disk(tmp_path / "selected")
    data.filter(lambda row: False).save_to_disk(tmp_path / "filtered")
    for name in ("selected", "filtered"):
        dataset = open_dataset(tmp_path / name)
        assert len(dataset) == 0 and dataset.block_sizes.tolist() == []
        with pytest.raises(IndexError):
            dataset[0]


def test_splits_are_opened_one_by_one(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=r"holds several data sets; give one of \S*test, \S*train"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path / "train")[1] == {"text": "b"}


@pytest.mark.parametrize("num_bytes", [0, 7, 500, 20_000, -100])
def test_a_part_of_a_file_is_refused(tmp_path, saved, num_bytes):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = next(tmp_path.glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(DataError, match=rf"{path.name} is not an Arrow stream, or not a complete one"):
        open_dataset(tmp_path)


def test_a_flipped_byte_is_no_crash(tmp_path):
    """pyarrow reads where offsets point to, wherever that is, unless it is told to look first."""
    data = datasets.Dataset.from_dict({"text": [samples.text(number) for number in range(30)], "n": [[1, 2]] * 30})
    data.save_to_disk(tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    whole, generator, num_errors = path.read_bytes(), np.random.default_rng(0), 0
    for place in generator.integers(0, len(whole), 150).tolist():
        content = bytearray(whole)
        content[place] ^= int(generator.integers(1, 256))
        path.write_bytes(content)
        try:
            dataset = open_dataset(tmp_path)
            assert isinstance(dataset.fingerprint, str) and len([*dataset]) <= 30
        except DataError as error:
            num_errors += 1
            assert path.name in str(error) and "\n" not in str(error)
    assert num_errors > 10


def test_a_picture_that_is_only_named_is_not_opened(tmp_path):
    features = datasets.Features({"picture": datasets.Image()})
    rows = {"picture": [None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path)
    path = next(tmp_path.glob("*.arrow"))
    with path.open("rb") as file:
        schema = pyarrow.ipc.open_stream(file).schema
    named = pyarrow.array([{"bytes": None, "path": "/etc/passwd"}], schema.field(0).type)
    with pyarrow.ipc.new_stream(path, schema) as stream:
        stream.write_batch(pyarrow.record_batch([named], schema=schema))
    with pytest.raises(DataError, match=r"sample 0: column 'picture' .*it names the file '/etc/passwd' and holds no"):
        open_dataset(tmp_path)[0]
