"""Copies of checkpoints in a store: whole or not there, kept as in the run directory, checked when they are fetched."""

import json
import os
import shutil
import threading

import pytest
import torch

import trainkit
from trainkit import checkpoint
from trainkit.checkpoint.copier import Copier
from trainkit.checkpoint.copies import Copies, ReplacedError
from trainkit.checkpoint.fetching import fetch, fetch_newest, found_at
from trainkit.checkpoint.io import CheckpointIO
from trainkit.checkpoint.store import MANIFEST
from trainkit.distributed.cluster import current_cluster
from trainkit.distributed.ranks import Ranks
from trainkit.errors import CheckpointError, ConfigError, StorageError
from trainkit.storage import RemoteLocation, locate
from trainkit.testing import run_ranks
from trainkit.training.checkpoints import Checkpoints


@pytest.fixture
def url():
    return f"memory://{os.urandom(4).hex()}/run"


@pytest.fixture
def copies(url):
    return Copies(locate(url))


@pytest.fixture
def made(tmp_path):
    """Makes the checkpoint of a step in a run directory."""
    runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())
    network = torch.nn.Linear(6, 2)
    engine = runtime.setup(network, torch.optim.AdamW(network.parameters()), name="network")

    def make(step, metrics=(), change=True):
        with torch.no_grad():
            network.bias.add_(1.0 if change else 0.0)
        path = tmp_path / "run" / "checkpoints" / f"step_{step:08d}"
        runtime.save(path, network=engine, step=step, metrics=dict(metrics))
        return path

    yield make
    runtime.close()


def _put(copies, *paths):
    for path in paths:
        copies.put(path, f"checkpoints/{path.name}")


def _names(directory):
    return sorted(path.name for path in directory.iterdir())


def _bytes(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_copy_that_is_fetched_is_the_checkpoint(copies, url, made, tmp_path):
    first, second = made(1), made(2)
    _put(copies, first, second)
    assert copies.steps() == [first.name, second.name]
    assert [found.shown.rpartition("/")[2] for found in found_at(url)] == [second.name, first.name]
    lines: list[str] = []
    fetched = fetch_newest(found_at(url), tmp_path / "to", lines.append)
    assert fetched == tmp_path / "to" / second.name and _bytes(fetched) == _bytes(second)
    assert lines == [f"copying {url}/checkpoints/{second.name}, 0.0 MB, to {fetched}"]
    of_one = found_at(f"{url}/checkpoints/{first.name}")
    assert _bytes(fetch(of_one[0], tmp_path / "to")) == _bytes(first)
    assert found_at(f"{url}/checkpoints")[1].shown == of_one[0].shown


def test_a_copy_counts_when_its_manifest_is_there(copies, url, made, monkeypatch):
    first, second = made(1), made(2)
    _put(copies, first)

    def fail(self, path):
        raise StorageError(f"{self.shown} cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(RemoteLocation, "upload", fail)
        with pytest.raises(StorageError, match="cannot be reached"):
            _put(copies, second)
    assert copies.steps() == [first.name]
    _put(copies, second)
    assert copies.steps() == [first.name, second.name]


def test_what_the_store_has_cut_short_is_no_copy(copies, made, monkeypatch):
    path = made(1)
    monkeypatch.setattr(RemoteLocation, "upload", lambda self, path: self.write(path.read_bytes()[:-1]))
    with pytest.raises(StorageError, match=r"rank_00000\.safetensors has \d+ bytes and not \d+"):
        _put(copies, path)
    assert copies.steps() == []


def test_files_that_are_there_are_not_sent_again(copies, made, monkeypatch):
    _put(copies, made(1))
    sent = []
    monkeypatch.setattr(RemoteLocation, "upload", lambda self, path: sent.append(path.name))
    _put(copies, made(1, {"loss": 1.0}, change=False))
    assert sent == [] and copies.outside("step_00000001")["values"]["metrics"] == {"loss": 1.0}


def test_a_checkpoint_that_is_replaced_meanwhile_is_no_copy(copies, made, monkeypatch):
    path, upload = made(1), RemoteLocation.upload

    def replacing(self, source):
        upload(self, source)
        made(1, {"loss": 1.0})

    with monkeypatch.context() as patch:
        patch.setattr(RemoteLocation, "upload", replacing)
        with pytest.raises(ReplacedError):
            _put(copies, path)
    assert copies.steps() == []
    shutil.rmtree(path)
    with pytest.raises(ReplacedError):
        _put(copies, path)


@pytest.mark.parametrize("fault", ["bit", "gone", "manifest"])
def test_a_damaged_copy_is_passed_over(copies, url, made, tmp_path, fault):
    first, second = made(1), made(2)
    _put(copies, first, second)
    there = copies.at(second.name)
    if fault == "bit":
        file = there.child("rank_00000.safetensors")
        content = bytearray(file.read())
        content[-1] ^= 1
        file.write(bytes(content))
    elif fault == "gone":
        there.child("rank_00000.safetensors").write(b"")
    else:
        there.child(MANIFEST).write(b"{}")
    lines: list[str] = []
    fetched = fetch_newest(found_at(url), tmp_path / "to", lines.append)
    assert fetched.name == first.name and _names(tmp_path / "to") == [first.name]
    assert sum(line.startswith("passed over: ") for line in lines) == 1
    copies.remove(first.name)
    with pytest.raises(CheckpointError):
        fetch_newest(found_at(url), tmp_path / "other")
    assert _names(tmp_path / "other") == []


def test_names_in_a_manifest_do_not_lead_elsewhere(copies, made, tmp_path):
    path = made(1)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"]["../../x"] = manifest["files"]["rank_00000.safetensors"]
    del manifest["sha256"]
    manifest["sha256"] = checkpoint.store._sum_of(manifest)
    copies.at(path.name).child(MANIFEST).write(json.dumps(manifest).encode())
    with pytest.raises(CheckpointError, match="is no name of a file beside it"):
        fetch(copies.at(path.name), tmp_path / "to")
    assert _names(tmp_path / "to") == []


def test_a_disk_without_room_is_said_before_the_copy(copies, made, tmp_path, monkeypatch):
    path = made(1)
    _put(copies, path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(CheckpointError, match=r"has room for 0\.0 GB"):
        fetch(copies.at(path.name), tmp_path / "to")
    assert _names(tmp_path / "to") == []


def test_copies_are_kept_as_checkpoints_are(copies, made, tmp_path):
    copier = Copier(copies, pytest.fail)
    kept = Checkpoints(
        tmp_path / "run" / "checkpoints",
        metric="loss",
        last=2,
        best=True,
        every=5,
        held_out=lambda: None,
        copier=copier,
    )
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], 1):
        path = made(step, {"loss": loss})
        copier.add(path, f"checkpoints/{path.name}")
        assert copier.wait(60)
        kept.prune()
    expected = [f"step_{step:08d}" for step in (2, 5, 7, 8)]
    assert (
        copies.steps()
        == expected
        == [path.name for path in checkpoint.step_directories(tmp_path / "run" / "checkpoints")]
    )
    assert [name for name in copies.folder.names() if "00000001" in name] == []
    assert copier.take_error() is None
    moved = [f"step_{step:08d}.left" for step in (7, 8)]
    assert [path.name for path in kept.tidy(6)] == moved and copies.steps() == expected[:2]
    assert f"checkpoints/{expected[-1]}/manifest.left.json" in copies.folder.names()


def test_the_newest_is_copied_first_and_the_pruned_not_at_all(copies, made, monkeypatch):
    paths = [made(step) for step in (1, 2, 3)]
    go_on, begun, upload = threading.Event(), threading.Event(), RemoteLocation.upload
    order = []

    def held(self, path):
        order.append(path.parent.name)
        begun.set()
        assert go_on.wait(60)
        upload(self, path)

    monkeypatch.setattr(RemoteLocation, "upload", held)
    copier = Copier(copies, pytest.fail)
    copier.add(paths[0], f"checkpoints/{paths[0].name}")
    assert begun.wait(60) and copier.in_use == paths[0] and not copier.wait(0.0)
    for path in paths[1:]:
        copier.add(path, f"checkpoints/{path.name}")
    shutil.rmtree(paths[1])
    go_on.set()
    assert copier.wait(60) and copier.in_use is None
    assert order == [paths[0].name, paths[2].name] and copies.steps() == order


def test_a_copy_that_fails_is_said_and_raised_at_the_end(copies, made, monkeypatch):
    lines: list[str] = []
    path = made(1)
    copier = Copier(copies, lines.append)

    def fail(self, path):
        raise StorageError("memory://x cannot be reached (gone)")

    with monkeypatch.context() as patch:
        patch.setattr(RemoteLocation, "upload", fail)
        copier.add(path, f"checkpoints/{path.name}")
        assert copier.wait(60)
    assert lines == [
        f"{path} was not copied to {copies.folder.shown}: memory://x cannot be reached (gone); training continues"
    ]
    assert "the same command copies it later" in str(copier.take_error())
    assert copier.take_error() is None


@pytest.mark.parametrize(
    ("copy_to", "run_dir", "message"),
    [
        ("https://127.0.0.1:1/x", "run", "http and https are read only; write to s3:// or to a path"),
        ("htp://x/y", "run", "htp:// is no kind of store that is known"),
        ("memory://x", None, "copy_to=memory://x needs a run_dir"),
        ("s3://me:hunter2@b/x", "run", "must not carry credentials"),
        ("run", "run", "must be another folder than run_dir"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(copy_to, run_dir, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="copy_to=") as caught:
        trainkit.Runtime(device="cpu", run_dir=run_dir, copy_to=copy_to, tracker=trainkit.Tracker())
    assert message in str(caught.value) and "hunter2" not in str(caught.value)
    assert _names(tmp_path) == []


def _make_with(copy_to, run_dir):
    with pytest.raises(ConfigError, match=r"copy_to=https.*are read only"):
        trainkit.Runtime(device="cpu", run_dir=run_dir, copy_to=copy_to, tracker=trainkit.Tracker())


@pytest.mark.parametrize("ranks", [2, 4])
def test_it_is_said_on_every_rank(ranks, tmp_path):
    run_ranks(_make_with, ranks, "https://127.0.0.1:1/x", tmp_path / "run")


def _loop(run_dir, copy_to, load):
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, copy_to=copy_to, tracker=trainkit.Tracker())
    network = torch.nn.Linear(6, 2)
    engine = runtime.setup(network, torch.optim.AdamW(network.parameters()), name="network")
    start = runtime.load(load, network=engine).position if load else 0
    data = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
    for batch in runtime.batches(data, batch_size=8, start=start, num_steps=3):
        engine.backward(engine(batch.data).square().mean())
        engine.step()
    runtime.save(run_dir / f"after_{runtime.position}", network=engine)
    runtime.finish_copies()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    runtime.close()
    return runtime.position, weights


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_loop_of_ones_own_saves_there_and_loads_from_there(ranks, tmp_path):
    store = f"file://{tmp_path}/store"
    run_ranks(_loop, ranks, tmp_path / "a", store, None)
    [fetched, *_] = run_ranks(_loop, ranks, tmp_path / "b", store, f"{store}/after_24")
    [here, *_] = run_ranks(_loop, ranks, tmp_path / "c", store, tmp_path / "a" / "after_24")
    assert fetched[0] == here[0] == 48
    assert all(torch.equal(fetched[1][name], here[1][name]) for name in here[1])
    assert _names(tmp_path / "store") == ["after_24", "after_48"]


def test_a_url_is_no_directory_to_save_in(tmp_path):
    runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())
    with pytest.raises(CheckpointError, match=r"memory://x/y is in a store: .*give Runtime\(copy_to=memory://x/y\)"):
        runtime.save("memory://x/y", step=1)
    with pytest.raises(ConfigError, match=r"memory://x/y needs a run_dir.*trainkit checkpoint fetch memory://x/y"):
        runtime.load("memory://x/y")
    runtime.close()


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_what_is_resumed_with_copies(copies, made, tmp_path, resume):
    first, second = made(1), made(2)
    _put(copies, first, second)
    own = tmp_path / "other"
    if resume == "never":
        with pytest.raises(ConfigError, match=r"resume=never, and memory://.* holds checkpoints: give another copy_to"):
            checkpoint.to_resume(resume, own, copies)
        return
    manifest = checkpoint.manifest_to_resume(resume, own, copies.folder.shown)
    assert manifest is not None and manifest["values"]["step"] == 2
    assert checkpoint.to_resume(resume, own, copies) == own / "checkpoints"
    assert [path.name for path in checkpoint.step_directories(own / "checkpoints")] == [second.name]
    copies.remove(second.name)  # what is here is newer now
    assert checkpoint.to_resume(resume, own, copies) == own / "checkpoints"
    assert [path.name for path in checkpoint.step_directories(own / "checkpoints")] == [second.name]
    (own / "checkpoints" / second.name / "rank_00000.safetensors").unlink()  # and now it is damaged
    assert checkpoint.to_resume(resume, own, copies) == own / "checkpoints"
    assert checkpoint.find(own).name == first.name


@pytest.mark.parametrize("resume", ["never", "elsewhere", "memory://elsewhere"])
def test_a_restart_on_another_machine_resumes_its_copies(copies, made, tmp_path, monkeypatch, resume):
    path = made(1)
    _put(copies, path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    own = tmp_path / "other"
    ranks = Ranks(current_cluster(), torch.device("cpu"))
    found = CheckpointIO(ranks, pytest.fail, run_dir=own, copies=copies)
    monkeypatch.setattr(found, "_report", lambda text: None)
    manifest = checkpoint.manifest_to_resume(resume, own, copies.folder.shown)
    assert manifest is not None and manifest["values"]["step"] == 1
    assert found.to_resume(resume) == own / "checkpoints"
    assert _names(own / "checkpoints") == [path.name]
