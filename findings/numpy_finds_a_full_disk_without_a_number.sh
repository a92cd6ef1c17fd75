#!/usr/bin/env bash
# numpy 2.4.6, on Linux; /dev/full stands for a disk without room.
#
# A good guess: a write to a full disk raises OSError with errno ENOSPC, whoever writes: that is what one catches to go on without a cache.
# Seen: ndarray.tofile, and np.save of an array whose header still went in, raise an OSError whose errno and strerror are None; its text says
# how many items were asked for and written. `except OSError as e: if e.errno != errno.ENOSPC: raise` lets it through, and
# f"cannot be written ({e.strerror})" says "None".
# trainkit takes that text for a full disk where it fills its cache: trainkit/cache.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6
cat >full.py <<'P'
import errno

import numpy as np

values = np.zeros(100_000)
for name, write in (
    ("file.write", lambda: open("/dev/full", "wb", buffering=0).write(values.tobytes())),
    ("ndarray.tofile", lambda: values.tofile("/dev/full")),
):
    try:
        write()
    except OSError as error:
        print(f"{name}: errno {error.errno}, strerror {error.strerror}: {error}")
        assert error.errno == (errno.ENOSPC if name == "file.write" else None)
    else:
        raise AssertionError(name)
P
venv/bin/python full.py
# Output seen:
#   file.write: errno 28, strerror No space left on device: [Errno 28] No space left on device
#   ndarray.tofile: errno None, strerror None: 100000 requested and 0 written
