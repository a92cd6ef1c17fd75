"""MappedFiles: what it reads, how many it keeps, and what a copy has."""

import pickle

import numpy as np

from trainkit.data.mapped_files import MappedFiles


def test_only_some_files_are_mapped_at_a_time(tmp_path):
    files = MappedFiles(most=2)
    paths = [tmp_path / f"{number}.bin" for number in range(4)]
    for number, path in enumerate(paths):
        np.full(3, number, np.uint16).tofile(path)
    np.save(tmp_path / "a.npy", np.arange(5))
    for _ in range(2):
        for number, path in enumerate(paths):
            assert files.array(path, np.dtype(np.uint16)).tolist() == [number] * 3
            assert len(files._arrays) <= 2
    assert files.array(paths[3], np.dtype(np.uint16)) is files.array(paths[3], np.dtype(np.uint16))
    assert files.array(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4]
    copy = pickle.loads(pickle.dumps(files))
    assert (copy.most, copy._arrays) == (2, {})
    assert copy.array(paths[0], np.dtype(np.uint16)).tolist() == [0, 0, 0]
