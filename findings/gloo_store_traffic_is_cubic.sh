#!/bin/bash
# torch 2.13.0. A gloo process group of n ranks passes about n^3 bytes through the store when it is made, since every rank
# publishes its addresses for all others in one value, and every rank reads all of these values whole. A guess would be n^2.
# With TORCH_GLOO_LAZY_INIT=1, which torch's documentation does not mention, only what is used is connected, and a group
# that does a ring all-reduce passes bytes in proportion to the ranks. At 1024 ranks the first would be tens of gigabytes
# through one host, for each group; jobs on GPUs make gloo groups too, for objects and for checkpoints.
# Seen (bytes through the store for one group and one all-reduce; growth from 16 to 32 ranks):
#   eager:  16 ranks  269,000   32 ranks 1,850,000   x 6.9
#   lazy:   16 ranks   35,000   32 ranks    77,000   x 2.2
# Exits with 0 while the growth is above 5 (eager) and below 4 (lazy).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "numpy==2.2.6" "torch==2.13.0"
cat > "$folder/count.py" <<'PY'
import multiprocessing
import os
import socket
import sys
import threading
from datetime import timedelta

os.environ["GLOO_SOCKET_IFNAME"] = "lo"


def rank(number, size, port):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size + 1, is_master=False, timeout=timedelta(seconds=300))
    dist.init_process_group("gloo", store=store, rank=number, world_size=size)
    dist.all_reduce(torch.ones(1024))
    store.add("done", 1)
    os._exit(0)


def forward(source, target, count):
    while data := source.recv(1 << 16):
        count[0] += len(data)
        target.sendall(data)
    target.close()


def accept(listener, port, count):
    while True:
        inside, _ = listener.accept()
        outside = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=forward, args=(inside, outside, count), daemon=True).start()
        threading.Thread(target=forward, args=(outside, inside, count), daemon=True).start()


def num_bytes(size):
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, size + 1, is_master=True, wait_for_workers=False)
    listener, count = socket.create_server(("127.0.0.1", 0), backlog=256), [0]
    threading.Thread(target=accept, args=(listener, store.port, count), daemon=True).start()
    context = multiprocessing.get_context("spawn")
    arguments = [(number, size, listener.getsockname()[1]) for number in range(size)]
    ranks = [context.Process(target=rank, args=one) for one in arguments]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(600)
        assert one.exitcode == 0, one.exitcode
    return count[0]


if __name__ == "__main__":
    few, many = num_bytes(16), num_bytes(32)
    print(f"16 ranks {few:,} bytes, 32 ranks {many:,} bytes: x {many / few:.1f}", flush=True)
    growth = many / few
    sys.exit(not (growth < 4 if os.environ.get("TORCH_GLOO_LAZY_INIT") else growth > 5))
PY
echo "eager:"; "$folder/venv/bin/python" "$folder/count.py"
echo "lazy:"; TORCH_GLOO_LAZY_INIT=1 "$folder/venv/bin/python" "$folder/count.py"
