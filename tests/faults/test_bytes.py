"""Bytes that are not as they were written are found before anything is loaded, with the name of their file."""

import io
import json
import pickle
import random
import shutil

import pytest
import torch
import xxhash

import trainkit
from trainkit import checkpoint
from trainkit.errors import CheckpointError
from trainkit.testing import run_ranks


def _engine(runtime):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 2))
    return runtime.setup(network, torch.optim.AdamW(network.parameters()), ema_decay=0.5, name="network")


def _save(strategy, path, num_steps):
    runtime = trainkit.Runtime(strategy=strategy, device="cpu", tracker=trainkit.Tracker())
    engine = _engine(runtime)
    for batch in runtime.batches(torch.randn(40, 6), batch_size=8, num_steps=num_steps):
        engine.backward(engine(batch.data).square().mean())
        engine.step()
    runtime.save(path, network=engine, step=num_steps, note="kept")


def _load(path):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    engine = _engine(runtime)
    before = {name: tensor.clone() for name, tensor in engine.state_dict()["module"].items()}
    try:
        return runtime.load(path, network=engine).position
    except CheckpointError as error:
        after = engine.state_dict()
        assert all(torch.equal(after["module"][name], before[name]) for name in before)
        assert not after["optimizer"]
        return str(error)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "checkpoints" / "step_00000003"
    run_ranks(_save, 2, "fsdp", path, 3)
    assert {p.name for p in path.iterdir()} == {"manifest.json", "rank_00000.safetensors", "rank_00001.safetensors"}
    return path


FILES = ("manifest.json", "rank_00000.safetensors", "rank_00001.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_any_damage_is_found_and_named(saved, tmp_path, name):
    damaged = tmp_path / "damaged"
    shutil.copytree(saved, damaged)
    file = damaged / name
    content = file.read_bytes()
    assert _load(damaged) == 24
    for length in (0, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert name in _load(damaged), length
    draw = random.Random(0)
    for bit in draw.sample(range(8 * len(content)), 50):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert name in _load(damaged), bit
    file.unlink()
    assert name in _load(damaged)


def _load_on_ranks(path):
    return _load(path)


@pytest.mark.parametrize("name", FILES)
def test_every_rank_hears_of_damage_that_one_has_found(saved, tmp_path, name):
    damaged = tmp_path / "damaged"
    shutil.copytree(saved, damaged)
    file = damaged / name
    file.write_bytes(file.read_bytes()[:-3])
    errors = run_ranks(_load_on_ranks, 2, damaged)
    assert name in errors[0] and errors[0] == errors[1]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "no_manifest"])
def test_a_run_falls_back_to_its_newest_whole_checkpoint(saved, tmp_path, damage):
    run_dir = tmp_path / "run"
    shutil.copytree(saved, run_dir / "checkpoints" / "step_00000003")
    newer = run_dir / "checkpoints" / "step_00000005"
    run_ranks(_save, 1, "ddp", newer, 5)
    assert _load(run_dir) == 40
    file = newer / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-7])
    elif damage == "gone":
        file.unlink()
    else:
        (newer / "manifest.json").unlink()
    assert _load(run_dir) == 24


class _Marked:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_a_pickle_is_never_run(saved, tmp_path):
    """Neither beside the files, nor in their place, nor with sums that fit it."""
    mark = tmp_path / "executed"
    evil = pickle.dumps(_Marked(mark))
    buffer = io.BytesIO()
    torch.save({"x": _Marked(mark)}, buffer)
    refusals = ("is larger than its file", "could not be read")  # of the small one, and of the large one
    for number, content in enumerate((evil, buffer.getvalue())):
        directory = tmp_path / str(number)
        shutil.copytree(saved, directory)
        for name in (".metadata", "evil.pkl", "model.pt", "rank_00002.safetensors"):
            (directory / name).write_bytes(content)
        assert _load(directory) == 24
        file = directory / "rank_00000.safetensors"
        file.write_bytes(content)
        manifest = checkpoint.read_manifest(directory)
        manifest["files"][file.name] = {
            "num_bytes": len(content),
            "xxh3_128": xxhash.xxh3_128(content).hexdigest(),
        }
        whole = {**manifest, "sha256": checkpoint.store._sum_of(manifest)}
        (directory / "manifest.json").write_text(json.dumps(whole))
        assert refusals[number] in _load(directory)
        (directory / "manifest.json").write_bytes(content)
        assert "manifest.json" in _load(directory)
    assert not mark.exists()
    pickle.loads(evil).close()
    assert mark.exists(), "the pickle would not have told"
