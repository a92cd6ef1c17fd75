"""Threads of the tokenizers library: on while text is tokenized, each time, and off otherwise."""

import os

from trainkit.data.tokenizer import rust_threads

SWITCH = "TOKENIZERS_PARALLELISM"


def test_threads_are_on_in_every_call_and_off_after_it(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    for _ in range(2):  # the second one finds what the first one left, as a child process does
        with rust_threads(None):
            assert os.environ[SWITCH] == "true"
        assert os.environ[SWITCH] == ""  # off, and not what a user would set


def test_what_the_environment_says_stays(monkeypatch):
    for asked in ("false", "true"):
        monkeypatch.setenv(SWITCH, asked)
        with rust_threads(None):
            assert os.environ[SWITCH] == asked
        assert os.environ[SWITCH] == asked
