"""A cache of their own and short waits for tests that read behind URLs."""

import pytest

from trainkit.storage import reader, stores


@pytest.fixture(autouse=True)
def _settings(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "6")
    monkeypatch.setenv("TRAINKIT_STORAGE_CACHE_GB", "1")
    reader._begin_anew()
    stores._begin_anew()
