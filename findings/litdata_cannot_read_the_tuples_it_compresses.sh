#!/usr/bin/env bash
# litdata 0.2.76 with torch 2.13.0.
#
# Samples may be tuples, and chunks may be compressed: compression="zstd". A good guess: what is written can be read.
# Seen: tuples of text and numbers are taken for rows of Arrow, which are compressed in another way, but tuples are no rows
# either, so they are written as they are. The index says that they are compressed, and reading raises RuntimeError:
# "Chunk ... is indexed as compression_level='batch' but missing LDFZ01 magic". The same samples as dicts, or with a tensor
# in them, are read back. trainkit.data.open_dataset reads such a chunk by what it holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
pip() { venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0 numpy==2.4.6 pyarrow==26.0.1 zstd==1.5.7.2 lightning-utilities==0.15.3 requests==2.34.2
pip boto3==1.44.8 tifffile==2026.3.3 obstore==0.12.1
pip --no-deps litdata==0.2.76
cat >tuples.py <<'P'
import json
import warnings

import litdata
from litdata import StreamingDataset
from litdata.streaming.cache import Cache

warnings.simplefilter("ignore")


def read_back(name, sample):
    cache = Cache(name, chunk_size=5, compression="zstd")
    for number in range(10):
        cache[number] = sample(number)
    cache.done()
    cache.merge()
    with open(f"{name}/index.json") as file:
        config = json.load(file)["config"]
    with open(f"{name}/chunk-0-0.bin", "rb") as file:
        start = file.read(8)
    try:
        found = StreamingDataset(name, shuffle=False)[3]
    except RuntimeError as error:
        found = str(error).replace(name, "...")
    print(name, config["compression"], config["compression_level"], start, "->", found, flush=True)
    return found


as_dict = read_back("dicts", lambda number: {"text": f"text {number}", "number": number})
as_tuple = read_back("tuples", lambda number: (f"text {number}", number))
print("litdata", litdata.__version__)
assert as_dict == {"text": "text 3", "number": 3}, "dicts are not read back either"
raise SystemExit(0 if "missing LDFZ01 magic" in as_tuple else "it reads them now")
P
HOME="$folder" venv/bin/python tuples.py
