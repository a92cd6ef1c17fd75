"""Writes tests/data/formats/written with mosaicml-streaming 0.13.0 and litdata 0.2.76.

These change other packages, and so are not installed for the tests: run `python -m tests.data.formats.write_samples` in
an environment of their own.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litdata.streaming.cache import Cache
from litdata.streaming.item_loader import TokensLoader
from streaming import MDSWriter

from tests.data.formats import samples

HERE = Path(__file__).parent / "written"


def write_mds(name: str, columns: dict[str, str], sample: Callable[[int], Any], **settings: Any) -> None:
    with MDSWriter(out=str(HERE / name), columns=columns, size_limit=5000, **settings) as writer:
        for number in range(samples.NUM):
            writer.write(sample(number))


def write_litdata(name: str, sample: Callable[[int], Any], loader: Any = None, **settings: Any) -> None:
    cache = Cache(str(HERE / name), item_loader=loader, **settings)
    for number in range(samples.NUM):
        cache[number] = sample(number)
    cache.done()
    cache.merge()


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    few = {"text": "str", "label": "int"}
    write_mds("mds", samples.MDS_COLUMNS, samples.mds)
    for codec in ("zstd", "gz", "bz2", "br"):
        write_mds(f"mds_{codec}", few, samples.small, compression=codec)
    write_mds("mds_pickle", {"text": "str", "thing": "pkl"}, lambda number: {"text": "a", "thing": number})
    write_litdata("litdata", samples.litdata, chunk_size=5)
    for level in ("batch", "chunk", "sample"):
        write_litdata(
            f"litdata_zstd_{level}",
            samples.plain,
            chunk_size=5,
            compression="zstd",
            compression_level=level,
            compression_batch_size=2 if level == "batch" else None,
        )
    write_litdata("litdata_rows", samples.rows, chunk_size=5)
    write_litdata("litdata_rows_zstd", samples.rows, chunk_size=5, compression="zstd")
    write_litdata("litdata_pickle", lambda number: {"text": "a", "thing": {number}}, chunk_size=5)
    write_litdata("litdata_tokens", samples.stream, TokensLoader(block_size=samples.BLOCK), chunk_size=30)


if __name__ == "__main__":
    main()
