"""Groups, time, names and labels; what an audit says of what it had no time for; what is kept of it."""

import json
import random

import numpy as np
import pytest

from trainkit.audit import audit
from trainkit.audit.memory import recall, remember
from trainkit.data import Datasets, Entry, LeftOut, Sides


def entry(key, **values):
    return Entry(key, f"row {key}", **values)


def audited(train, held_out, **options):
    return audit(Sides(train=lambda: iter(train), held_out=lambda: iter(held_out)), **options)


def test_groups_on_both_sides_are_found():
    report = audited([entry(1, group="anna"), entry(2, group="ben"), entry(3)], [entry(4, group="anna"), entry(5)])
    assert report.train == {"group": 1} == report.held_out and report.keys.tolist() == [1]


def test_training_examples_later_than_held_out_ones_are_found():
    report = audited([entry(1, time=1.0), entry(2, time=5.0)], [entry(3, time=4.0), entry(4, time=6.0)])
    assert (report.train, report.held_out) == ({"later": 1}, {"later": 1}) and report.keys.tolist() == [2]


def test_names_of_pictures_are_a_hint():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 64, 64), np.uint8)
    names = [("a/DSC_00417.jpg", "b/DSC_00417.png"), ("a/0001.jpg", "b/0001.jpg"), ("a/img_1.png", "b/img_1.png")]
    reports = [audited([Entry(1, a, pixels=pixels[0])], [Entry(2, b, pixels=pixels[1])]) for a, b in names]
    assert [report.train for report in reports] == [{"name": 1}, {}, {}]
    assert reports[0].is_clean and not len(reports[0].keys)


def labelled(num, start, mark=None, column=None):
    draw, made = random.Random(start), []
    for key in range(start, start + num):
        label = draw.choice(["good", "bad"])
        words = draw.choices(["film", "plot", "actor", "scene", "music", "light", "long"], k=12)
        words += [mark] if mark and label == "good" else []
        columns = {column: int(label == "good") + draw.random() / 9} if column else {"id": key}
        made.append(entry(key, text=" ".join(words), label=label, columns=columns))
    return made


def test_a_word_that_gives_a_label_away_is_named():
    (one,) = audited(labelled(400, 0, mark="xyzzy"), labelled(200, 1000, mark="xyzzy")).given_away[:1]
    assert one.feature == "the last word" or (one.label == "good" and "'xyzzy'" in one.feature)


def test_a_column_that_gives_all_labels_away_is_named():
    (one,) = audited(labelled(400, 0, column="score"), labelled(200, 1000, column="score")).given_away
    assert str(one).startswith("the column 'score' gives away the labels (score 0.99")


def test_labels_that_must_be_learnt_are_not_given_away():
    assert not audited(labelled(400, 0), labelled(200, 1000)).given_away
    assert not audited(labelled(5, 0, mark="x"), labelled(5, 50, mark="x")).given_away


def test_an_audit_without_time_says_what_it_compared():
    many = [entry(key, text=f"text {key}") for key in range(5000)]
    sides = Sides(train=lambda: iter(many), held_out=lambda: iter(many[:9]), num_train=5000, num_held_out=9)
    report = audit(sides, seconds=1e-9)
    assert not report.is_complete and report.num_train == 512
    assert "NOT FINISHED" in report.line() and "512 of 5,000 training examples" in report.line()
    assert audit(sides).is_complete


def test_a_report_is_kept_only_where_it_is_complete(tmp_path):
    report = audited([entry(1, text="a"), entry(2, group="x")], [entry(1, text="a"), entry(7, group="x")])
    remember(tmp_path, "whole", report)
    again = recall(tmp_path, "whole")
    assert again is not None and again.line() == report.line() and again.keys.tolist() == [1, 2]
    assert json.dumps(again.facts()) == json.dumps(report.facts())
    many = [entry(key) for key in range(2000)]
    remember(tmp_path, "part", audited(many, many[:1], seconds=1e-9))
    assert recall(tmp_path, "part") is None


@pytest.mark.parametrize("samples", [["a b", "c d", "a b"], [{"x": 1}, {"x": 2}], [np.ones(3), np.zeros(3)]])
def test_own_data_sets_in_memory_are_compared(samples):
    data = Datasets(train=samples, held_out=samples[:1])
    sides = data.sides()
    assert sides is not None
    report = audit(sides)
    assert report.held_out == {"exact": 1}
    assert len(data.without(LeftOut(report.keys)).train) == len(samples) - report.train["exact"]


def test_left_out_keys_do_not_depend_on_their_order():
    one, other = (LeftOut(np.array(keys, np.uint64)) for keys in ([3, 1, 3], [1, 3]))
    assert one == other and hash(one) == hash(other) and one.digest == other.digest and len(one) == 2
    assert not LeftOut().digest and len(one | LeftOut(np.array([9], np.uint64))) == 3
