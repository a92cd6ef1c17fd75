"""Why ranks could not meet, in one sentence."""

import pytest
import torch

from trainkit.comm.cluster import _why

OF_NCCL = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
{}
"""


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (OF_NCCL.format("Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 60"), "share one GPU, cuda:1"),
        (OF_NCCL.format("Bootstrap : no socket interface found"), "Bootstrap : no socket interface found. Is GLOO"),
        ("connection refused\nmore", "connection refused. Is GLOO"),
        ("", "no reason was given. Is GLOO"),
    ],
)
def test_why(told, expected):
    assert expected in _why(told, torch.device("cuda", 1))
