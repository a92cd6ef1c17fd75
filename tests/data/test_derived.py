"""Files that are made from training data, once for all runs that have the same."""

from pathlib import Path

from trainkit.data import Datasets


def _build(calls):
    def build(directory):
        calls.append(directory)
        (directory / "sum").write_text("6")

    return build


def test_the_same_data_find_what_was_made(tmp_path):
    calls: list[Path] = []
    found = Datasets(train=[1, 2, 3], held_out=[4], cache=tmp_path).derived("sum-1", _build(calls))
    assert found is not None and (found / "sum").read_text() == "6"
    assert Datasets(train=[1, 2, 3], held_out=[5], cache=tmp_path).derived("sum-1", _build(calls)) == found
    assert len(calls) == 1
    assert Datasets(train=[1, 2, 4], held_out=[4], cache=tmp_path).derived("sum-1", _build(calls)) != found
    assert Datasets(train=[1, 2, 3], held_out=[4], cache=tmp_path).derived("sum-2", _build(calls)) != found
    assert len(calls) == 3


def test_without_a_place_nothing_is_kept(tmp_path):
    calls: list[Path] = []
    assert Datasets(train=[1], held_out=[2]).derived("sum-1", _build(calls)) is None
    (tmp_path / "file").touch()
    assert Datasets(train=[1], held_out=[2], cache=tmp_path / "file" / "cache").derived("sum-1", _build(calls)) is None
    assert not calls
