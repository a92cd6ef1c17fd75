"""Manifests that somebody else wrote: what they make a reader open and hold is bounded by the files beside them."""

import json

import pytest
import torch

import trainkit
from trainkit import checkpoint
from trainkit.checkpoint import store
from trainkit.errors import CheckpointError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "step_00000000"
    runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())
    module = torch.nn.Linear(3, 2)
    runtime.save(path, network=runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1)))
    return json.loads((path / "manifest.json").read_text())


def _read(tmp_path, manifest):
    plain = {key: value for key, value in manifest.items() if key != "sha256"}
    (tmp_path / "manifest.json").write_text(json.dumps({**plain, "sha256": store._sum_of(plain)}))
    return checkpoint.read_manifest(tmp_path)


def test_the_manifest_as_it_was_written_is_read(saved, tmp_path):
    assert _read(tmp_path, saved)["tensors"].keys() == saved["tensors"].keys()


WEIGHT, FILE = "network.module/weight", "rank_00000.safetensors"
OTHER_FILES = {"num_bytes": 5, "xxh3_128": ""}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"files": {"../../etc/passwd": OTHER_FILES}}, "is no name of a file"),
        ({"files": {"/etc/passwd": OTHER_FILES}}, "is no name of a file"),
        ({"files": {"..": OTHER_FILES}}, "is no name of a file"),
        ({"files": []}, "no table of files"),
        ({"files": {FILE: {"num_bytes": -1, "xxh3_128": ""}}}, "has no size"),
        ({"position": "many"}, "has no position"),
        ({"position": True}, "has no position"),
        ({"values": None}, "no table of values"),
        ({"engines": {"network": 3}}, "an engine has no values"),
        ({"tensors": 3}, "no table of tensors"),
        ({"encrypted_for": ["age1"]}, "does not say whether it is encrypted"),
    ],
)
def test_a_table_that_is_wrong(saved, tmp_path, changed, message):
    with pytest.raises(CheckpointError, match=f"is damaged: .*{message}"):
        _read(tmp_path, {**saved, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": [1 << 40, 2], "parts": [[0, 1 << 41, FILE]]}, "is larger than its file"),
        ({"shape": [1 << 40, 2]}, "is not whole"),
        ({"shape": [1] * 100}, "has no shape"),
        ({"shape": [-2, -3]}, "has no shape"),
        ({"dtype": "F1024"}, "has no known dtype"),
        ({"parts": [[0, 6, "/etc/passwd"]]}, "parts of nowhere"),
        ({"parts": [[0, 3, FILE], [2, 3, FILE]]}, "parts of nowhere"),
        ({"parts": [[0, 3, FILE]]}, "is not whole"),
        ({"parts": "x"}, "has no parts"),
    ],
)
def test_a_tensor_that_is_wrong(saved, tmp_path, changed, message):
    tensors = {**saved["tensors"], WEIGHT: {**saved["tensors"][WEIGHT], **changed}}
    with pytest.raises(CheckpointError, match=f"is damaged: .*{message}"):
        _read(tmp_path, {**saved, "tensors": tensors})


def test_many_tensors_do_not_share_the_bytes_of_one(saved, tmp_path):
    tensors = {f"network.module/{i}": saved["tensors"][WEIGHT] for i in range(100)}
    with pytest.raises(CheckpointError, match="is larger than its file"):
        _read(tmp_path, {**saved, "tensors": tensors})


def test_text_that_is_deep_or_long(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.read_manifest(tmp_path)
    monkeypatch.setattr(store, "MAX_MANIFEST_BYTES", 1 << 10)
    (tmp_path / "manifest.json").write_text(" " * (1 << 11))
    with pytest.raises(CheckpointError, match="is larger than 0 MiB"):
        checkpoint.read_manifest(tmp_path)
