"""How often and how long requests are made again."""

import time

import pytest

from trainkit.errors import StorageError
from trainkit.storage.persist import persist
from trainkit.storage.settings import StorageSettings
from trainkit.storage.store import PassingError


@pytest.mark.parametrize(("makes_progress", "num_calls"), [(True, 5), (False, 1)])
def test_an_upload_begins_anew_where_parts_came(makes_progress, num_calls):
    calls = []

    def fail(left_s):
        calls.append(left_s)
        time.sleep(0.4)  # more than the time of the store
        raise PassingError("busy", progress_s=time.monotonic() if makes_progress else 0.0)

    with pytest.raises(StorageError, match="x cannot be reached"):
        persist("x", StorageSettings(timeout_s=0.3), lambda left_s: fail(left_s))
    assert len(calls) == num_calls
