"""What all tests share."""

import gc
import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.jobs import PRELOADED
from trainkit.cache import ENVIRONMENT_VARIABLE, cache_root
from trainkit.ops import mode
from trainkit.testing import end_pools, fork_context

if TYPE_CHECKING:
    from tests.launch.slurm_cluster import Cluster

ROOT = Path(__file__).parent.parent
# What DeepSpeed imports when its first engine is made takes a process 1.5 s of CPU: its Muon imports all of Inductor.
# Not where there is a GPU, for its import asks for the accelerator, and a process that did cannot be forked.
DEEPSPEED = ["deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer"]
# The processes of jobs and those of ranks have one parent.
fork_context(*PRELOADED, *([] if torch.cuda.is_available() else DEEPSPEED))


WAIT = ("launch", "launcher", "reduction")  # folders of tests that wait most of their time, for hosts and clusters


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: last, one worker would wait for another.

    Those that wait are spread among those that compute, for at the same time they would leave cores idle; the
    longest is among the first.
    """
    slow = [*dict.fromkeys(item.path for item in items if item.get_closest_marker("slow"))]
    waiting = sorted((path for path in slow if path.parent.name in WAIT), key=lambda path: path.stem != "test_slurm")
    computing = [path for path in slow if path not in waiting]
    places = {path: place / len(group) for group in (waiting, computing) for place, path in enumerate(group)}
    items.sort(key=lambda item: places.get(item.path, 1.0))


def pytest_collection_finish() -> None:
    """What is imported and collected stays to the end: 750,000 objects, which a full collection looks through in 0.5 s.

    The product asks for collections too, where it counts memory.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call() -> Generator[None]:
    """Lines appear on stderr as in a program without logging configuration: pytest's handlers would count as one."""
    logger = logging.getLogger("trainkit")
    logger.propagate = False  # not earlier: pytest adds its handlers to loggers that do not propagate
    try:
        yield
    finally:
        logger.propagate = True


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_pools()


@pytest.fixture(scope="module")
def _cluster() -> "Iterator[Cluster]":
    from tests.launch.slurm_cluster import cluster, why_not

    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with cluster() as made:
        yield made


@pytest.fixture
def slurm(_cluster: "Cluster") -> "Iterator[Cluster]":
    """A Slurm of three nodes, all of which are idle."""
    yield _cluster
    _cluster.cancel_all()


@pytest.fixture(scope="module", autouse=True)
def _mode_of_ops_is_kept() -> Iterator[None]:
    """A run in this process, also of a fixture, sets `ops` for the whole of it: the next file starts as this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mode, "_fused", mode.is_on())
        patch.setattr(mode, "_require", mode.is_required())
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of tests live and die with them; the compiled ops are the user's, since a minute's work is in them."""
    kept, own = cache_root() / "ops", tmp_path_factory.mktemp("cache")
    kept.mkdir(parents=True, exist_ok=True)
    (own / "ops").symlink_to(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, str(own))
        yield
