#!/usr/bin/env bash
# pyarrow 26.0.1 with s3rver 3.7.1 (npm), which stands for stores that are older than Amazon's checksums of 2025.
#
# A small object is written. A good guess: a store that does not know the checksums refuses the request, or ignores them.
# Seen: it answers 200 and keeps a damaged object. The client sends the body in chunks of its own with a checksum behind
# (content-encoding aws-chunked); what is kept of an upload in parts is these chunks with their lengths and the checksum.
# AWS_REQUEST_CHECKSUM_CALCULATION=when_required, which Arrow's client reads, though its documentation does not name it,
# mends it. trainkit compares the size after a write, removes the object and says what to set.
# Exits with 0 while the object is damaged without the variable and right with it.
set -euo pipefail
folder=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1
npm install --silent --no-audit --no-fund --prefix . s3rver@3.7.1 >/dev/null
port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
node_modules/.bin/s3rver -d "$folder/data" -a 127.0.0.1 -p "$port" --silent >server.log 2>&1 &
server=$!
for _ in $(seq 100); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    sleep 0.2
done
cat >write.py <<'P'
import sys

from pyarrow import fs

client = fs.S3FileSystem(
    endpoint_override=f"http://127.0.0.1:{sys.argv[1]}",
    region="us-east-1",
    access_key="S3RVER",
    secret_key="S3RVER",
    allow_bucket_creation=True,
)
client.create_dir("bucket")
with client.open_output_stream("bucket/x") as file:
    file.write(b"abc")
found = client.open_input_file("bucket/x").readall()
print(f"{sys.argv[2]}: wrote b'abc', read {found}")
sys.exit((found == b"abc") != (sys.argv[2] == "when_required"))
P
AWS_REQUEST_CHECKSUM_CALCULATION=when_supported venv/bin/python write.py "$port" when_supported
AWS_REQUEST_CHECKSUM_CALCULATION=when_required venv/bin/python write.py "$port" when_required
