"""A job of many ranks needs many connections, and a process may often open 1024 files."""

import subprocess
import sys

import pytest

from trainkit.distributed.open_files import allow_open_files

LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from trainkit.distributed.open_files import allow_open_files
print(allow_open_files({ranks}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "ranks", "said"),
    [
        (256, 4096, 2, "None 520"),
        (1024, 4096, 64, "None 1024"),
        (1024, 4096, 256, "None 1536"),
        (1024, 4096, 1024, "this machine allows 4096"),
    ],
)
def test_the_limit_is_raised_where_it_may(soft, hard, ranks, said):
    code = LIMITED.format(soft=soft, hard=hard, ranks=ranks)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said in done.stdout


def test_enough_is_left_as_it_is():
    assert allow_open_files(1) is None
