#!/usr/bin/env bash
# torch 2.13.0 (torch.utils.tensorboard.SummaryWriter), tensorboard 2.21.0.
#
# A loop that opens its writer with purge_step=<first step> goes on in the same folder with a second writer in the same
# process: steps 0 and 1 in the first, 2 to 5 in the second, whose purge_step=2 removes nothing. A good guess: TensorBoard
# shows all six, as it does for nearly every such pair of writers.
# Seen: event files are read in the order of their names: second, host, process, and a counter of the process's writers
# without leading zeros. If the two are opened in one second and are the process's writers 9 and 10 (99 and 100, ...),
# "10" is read before "9". The first writer's start at step 0 then looks like a restart and purges all that the second
# has written: 4 of 6 scalars are missing, though both files are whole. Only a line of the log, not shown, says so.
# trainkit waits for the next second before it opens another file: trainkit/tracking/tensorboard.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 tensorboard==2.21.0 numpy
cat >writers.py <<'P'
import sys
import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter


def write(folder, steps):
    writer = SummaryWriter(folder, purge_step=steps[0])
    for step in steps:
        writer.add_scalar("loss", 1.0, step)
    writer.close()


for number in range(int(sys.argv[1])):  # other runs of the same process, such as a sweep
    write(f"others/{number}", [0])
while time.time() % 1 > 0.1:  # both writers in one second
    time.sleep(0.01)
write("run", [0, 1])
write("run", [2, 3, 4, 5])
events = EventAccumulator("run")
events.Reload()
print(f"after {sys.argv[1]} other writers, steps shown:", [event.step for event in events.Scalars("loss")])
P
for others in 7 8 9; do
    venv/bin/python writers.py "$others" 2>/dev/null
    rm -rf run others
done | tee seen
diff seen - <<'T'
after 7 other writers, steps shown: [0, 1, 2, 3, 4, 5]
after 8 other writers, steps shown: [0, 1, 2, 3, 4, 5]
after 9 other writers, steps shown: [0, 1]
T
