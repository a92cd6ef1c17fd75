"""What all tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed import end_pools

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_pools()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of tests live and die with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
