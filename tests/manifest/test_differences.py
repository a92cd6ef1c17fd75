"""What differs between two manifests, and what it can change."""

import copy
from typing import Any

import pytest

from trainkit.manifest import differences

FIRST: dict[str, Any] = {
    "configuration": {"seed": 0, "data": {"path": "a"}, "run_dir": "runs/a", "recipe": {"num_steps": 4}},
    "code": {"modules": {"trainkit.job": "1", "mine": "2"}},
    "environment": {
        "python": "3.11.7",
        "platform": "Linux",
        "packages": {
            "torch": {"version": "2.13.0+cpu", "content_sha256": "a"},
            "pillow": {"version": "12.0"},
            "mkdocs": {"version": "1"},
        },
        "imported": ["torch", "pillow"],
        "cuda": {},
        "variables": {"OMP_NUM_THREADS": "1"},
    },
    "hardware": {"cpu": {"model": "A", "capability": "AVX2"}, "gpus": []},
    "data": {"fingerprints": {"train": "1", "held_out": "2"}},
    "training": {"num_ranks": 1, "strategy": "ddp", "device": "cpu"},
}
FILES = {"a.txt": {"num_bytes": 1, "sha256": "x"}, "b.txt": {"num_bytes": 1, "sha256": "y"}}


def _changed(*path_and_value):
    *path, last, value = path_and_value
    second = copy.deepcopy(FIRST)
    node = second
    for name in path:
        node = node[name]
    node[last] = value
    return second


def test_the_same_differ_in_nothing():
    assert differences(FIRST, copy.deepcopy(FIRST), files=(FILES, FILES)) == []


def test_what_torchrun_and_compiling_set_is_no_difference():
    own = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor_root"}
    assert differences(_changed("environment", "variables", {"OMP_NUM_THREADS": "1", **own}), FIRST) == []


@pytest.mark.parametrize(
    ("change", "part", "name", "effect"),
    [
        (("configuration", "seed", 1), "configuration", "seed", "everything from the first step on"),
        (("configuration", "data", "path", "b"), "configuration", "data.path", "batches"),
        (("configuration", "recipe", "num_steps", 5), "configuration", "recipe.num_steps", "what is trained"),
        (("code", "modules", "mine", "3"), "code", "mine", "anything"),
        (("environment", "packages", "torch", {"version": "2.12"}), "packages", "torch", "by rounding"),
        (("environment", "packages", "pillow", {"version": "13"}), "packages", "pillow", "how pictures are decoded"),
        (("environment", "packages", "mkdocs", {"version": "2"}), "packages", "1 others", "nothing: none was imported"),
        (("environment", "packages", "torch", "content_sha256", "b"), "packages", "torch", "by rounding"),
        (("environment", "python", "3.12"), "environment", "Python", "how packages behave"),
        (("environment", "variables", {}), "environment", "OMP_NUM_THREADS", "the library that reads it"),
        (("environment", "cuda", {"driver": "580"}), "environment", "driver", "the kernels"),
        (("hardware", "cpu", "capability", "AVX512"), "hardware", "processor capability", "which kernels run"),
        (("hardware", "gpus", [{"name": "H100"}] * 2), "hardware", "GPUs", "which kernels run"),
        (("data", "fingerprints", "train", "9"), "data", "fingerprint of train", "batches"),
        (("training", "num_ranks", 2), "processes", "num_ranks", "the order in which sums are taken"),
    ],
)
def test_one_change_is_named(change, part, name, effect):
    (found,) = differences(FIRST, _changed(*change), files=(FILES, FILES))
    assert (found.part, found.name) == (part, name) and effect in found.effect
    assert str(found).startswith(f"{part}: {name} ")


@pytest.mark.parametrize(
    "change",
    [
        ("run_dir", "runs/b"),
        ("log_every", 5),
        ("tracking", {"console": True}),
        ("checkpoint", {"recipients": ["age1"]}),
    ],
)
def test_what_is_watched_and_kept_does_not_count(change):
    assert differences(FIRST, _changed("configuration", *change)) == []


def test_files_that_changed_came_or_went():
    other = {"a.txt": {"num_bytes": 1, "sha256": "z"}, "c.txt": {"num_bytes": 2, "sha256": "x"}}
    found = differences(FIRST, FIRST, files=(FILES, other))
    assert [(entry.name, entry.before, entry.now) for entry in found] == [
        ("a.txt", "1 bytes x", "1 bytes z"),
        ("b.txt", "1 bytes y", "missing"),
        ("c.txt", "missing", "2 bytes x"),
    ]


@pytest.mark.parametrize("folder", ["there/texts/", "/data/"])
def test_files_that_lie_elsewhere_are_compared_by_place(folder):
    moved = {f"{folder}{name}": facts for name, facts in FILES.items()}
    here = {f"texts/{name}": facts for name, facts in FILES.items()}
    assert differences(FIRST, FIRST, files=(here, moved)) == []
    (changed,) = differences(FIRST, FIRST, files=(here, {**moved, f"{folder}b.txt": {"num_bytes": 2, "sha256": "z"}}))
    assert (changed.name, changed.before, changed.now) == ("b.txt", "1 bytes y", "2 bytes z")


def test_one_file_may_have_another_name():
    one, same = {"a.csv": FILES["a.txt"]}, {"/data/b.csv": FILES["a.txt"]}
    assert differences(FIRST, FIRST, files=(one, same)) == []
    (changed,) = differences(FIRST, FIRST, files=(one, {"/data/b.csv": {"num_bytes": 2, "sha256": "z"}}))
    assert changed.name == "a.csv"


def test_many_are_counted():
    many = {f"{i:03}.txt": {"num_bytes": i, "sha256": ""} for i in range(50)}
    more = {name: {"num_bytes": -1, "sha256": ""} for name in many}
    found = differences(FIRST, FIRST, files=(many, more))
    assert len(found) == 21 and found[-1].name == "30 more files"


def test_manifests_of_anybody_are_compared_without_a_crash():
    junk: Any
    for junk in (None, [], 3, "x", {"modules": 3, "packages": ["a"], "cpu": 1, "gpus": 4, "fingerprints": []}):
        other = dict.fromkeys(FIRST, junk)
        for found in (differences(FIRST, other), differences(other, FIRST)):
            assert {"configuration", "packages", "environment", "hardware", "processes"} <= {one.part for one in found}
