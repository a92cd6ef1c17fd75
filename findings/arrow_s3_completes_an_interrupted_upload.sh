#!/usr/bin/env bash
# pyarrow 26.0.1 with moto 5.2.5.
#
# A stream to an object of S3 is left by an exception in the middle, such as Ctrl-C's. A good guess: what was not closed in
# order is given up, as an upload in parts can be, and the old object stays.
# Seen: the `with` block closes the stream, and so does the garbage collector where nobody does: each completes the upload,
# and the object holds what had been written so far. There is no method that gives it up. A stream that is never closed (a
# reference to it leaked) leaves the old object; one that is held in a list until the interpreter ends made its exit hang.
# trainkit leaks the reference. Exits with 0 while both ways leave the half object.
set -euo pipefail
folder=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 "moto[s3,server]==5.2.5"
port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/moto_server -H 127.0.0.1 -p "$port" >server.log 2>&1 &
server=$!
for _ in $(seq 100); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    sleep 0.2
done
cat >upload.py <<'P'
import sys

from pyarrow import fs

client = fs.S3FileSystem(
    endpoint_override=f"http://127.0.0.1:{sys.argv[1]}",
    region="us-east-1",
    access_key="me",
    secret_key="secret",
    allow_bucket_creation=True,
)
client.create_dir("bucket")


def old(name):
    with client.open_output_stream(f"bucket/{name}") as file:
        file.write(b"the old object")


def size(name):
    return client.get_file_info(f"bucket/{name}").size


HALF = bytes(12 << 20)
old("interrupted")
try:
    with client.open_output_stream("bucket/interrupted") as file:
        file.write(HALF)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
old("dropped")
file = client.open_output_stream("bucket/dropped")
file.write(HALF)
del file
found = size("interrupted"), size("dropped")
print(f"an exception in the with block leaves {found[0]:,} bytes; a stream that is dropped {found[1]:,}; the old had 14")
sys.exit(found != (len(HALF), len(HALF)))
P
venv/bin/python upload.py "$port"
