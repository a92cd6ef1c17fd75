"""Encrypted checkpoints change hands between strategies as plain ones do: the same state, and the same losses."""

import os
from functools import partial
from unittest import mock

import pytest

import trainkit
from benchmarks import handover
from tests.encryption.keys import age_key
from trainkit.encryption import Encryption
from trainkit.testing import run_ranks

CELLS = [
    handover.Cell("bert", ("fsdp", 4), ("zero3", 2)),
    handover.Cell("gan", ("zero3", 2), ("fsdp", 4)),
    handover.Cell("gan", ("ddp", 2), ("zero2", 2)),
    handover.Cell("bert", ("zero2", 2), ("single", 1)),
]
pytestmark = pytest.mark.slow


def _encrypted(encryption, function, *args):
    runtime = partial(trainkit.Runtime, checkpoint=encryption)
    # The process is used again by tests that have no key.
    with mock.patch.object(trainkit, "Runtime", runtime), mock.patch.dict(os.environ):
        return function(*args)


@pytest.fixture(scope="module")
def handovers(tmp_path_factory):
    key = age_key(tmp_path_factory.mktemp("keys"))

    def run(world_size, function, *args):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TRAINKIT_IDENTITY", raising=False)
            encryption = Encryption(recipients=[key.recipient], identity=key.file)
            return run_ranks(partial(_encrypted, encryption, function), world_size, *args)

    return handover.Handovers(run, tmp_path_factory.mktemp("handovers"))


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.model}-{cell.wrote}-{cell.reads}")
def test_the_same_state_and_the_same_losses(handovers, cell):
    measured = handovers.measured(cell)
    assert measured.num_tensors > 100 and measured.num_different == 0 and not measured.misses
    for path in handovers.directory.iterdir():
        assert {entry.suffix for entry in path.iterdir()} == {".json", ".age"}
