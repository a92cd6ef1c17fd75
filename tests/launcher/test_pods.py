"""The pods of an Indexed Job, run by podman: they meet by name, one eviction stops all, and codes say what it was."""

import os
import time
from pathlib import Path

import pytest

from tests.launcher import podman as engine
from tests.launcher.podman import IMAGE, ROOT, pods_of
from trainkit.launcher.job import Job
from trainkit.launcher.kubernetes import Kubernetes
from trainkit.launcher.manifests import manifests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
GRACE_S = 30
NUM_STEPS = 1500


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    engine.require()
    directory = tmp_path_factory.mktemp("podman")
    with engine.podman(directory) as made:
        yield made


@pytest.fixture
def shared(tmp_path):
    """What the claim is: a folder that the pods' user can write to."""
    folder = tmp_path / "shared"
    folder.mkdir()
    os.chown(folder, 1000, 1000)
    return folder


def start(podman, shared, name, *words):
    """Starts the job's pods; the names of their containers."""
    cluster = Kubernetes(
        name=name,
        image=IMAGE,
        nodes=2,
        gpus_per_node=0,
        cpus_per_node=1,
        shm_size="64Mi",
        grace_period=GRACE_S,
        environment={"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "eth0", "WANDB_MODE": "disabled"},
    )
    own = str(ROOT / "tests" / "user" / "conf")
    job = manifests(cluster, Job(words=("experiment=toy_short", "tracking=none", *words), config_dir=own))[-1]
    pods = pods_of(job, shared)
    podman.remove()
    for index, pod in enumerate(pods):
        podman.play(pod, index)
    return [f"{pod['metadata']['name']}-{pod['spec']['containers'][0]['name']}" for pod in pods]


def logs(podman, containers):
    return "".join(podman.run("logs", name).stdout + podman.run("logs", name).stderr for name in containers)


def newest(run: Path) -> int:
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step_*") if path.name[5:].isdigit()), default=0)


def test_a_wrong_configuration_ends_every_pod_with_2(podman, shared):
    containers = start(podman, shared, "wrong", "recipe.batchsize=8")
    assert podman.wait(*containers) == [2, 2], logs(podman, containers)
    assert "Did you mean 'recipe.batch_size'" in logs(podman, containers)


def test_an_eviction_of_one_pod_saves_in_all_and_goes_on(podman, shared):
    run = shared / "runs" / "long"
    words = (f"recipe.num_steps={NUM_STEPS}", "save_every=50", "evaluate_every=null")
    containers = start(podman, shared, "long", *words)
    deadline = time.monotonic() + 180
    while not newest(run):
        assert time.monotonic() < deadline, logs(podman, containers)
        time.sleep(0.1)
    podman.run("stop", "--time", str(GRACE_S), containers[1])  # not the first: as an eviction does
    assert podman.wait(*containers) == [75, 75], logs(podman, containers)
    saved = newest(run)
    assert saved < NUM_STEPS
    containers = start(podman, shared, "long", *words)
    assert podman.wait(*containers) == [0, 0], logs(podman, containers)
    assert f"step {saved}" in logs(podman, containers)
    assert newest(run) == NUM_STEPS and run.stat().st_uid == 1000
