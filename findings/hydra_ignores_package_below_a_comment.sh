#!/usr/bin/env bash
# hydra-core 1.3.8.
#
# A file of a group says `# @package _global_`, so that its keys are those of the whole configuration, as experiments do.
# A good guess: it may stand anywhere among the comments above the keys, since it is a comment itself.
# Seen: Hydra reads it only above every other line. Below a first comment (a title, a licence) it is ignored without a
# warning: the keys of the file lie below the name of the group, lr stays 1, and the experiment changes nothing.
# An empty line above it does no harm.
# trainkit refuses such a file in --config-dir, by its line: trainkit/config/directory.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check hydra-core==1.3.8
mkdir -p conf/experiment
printf 'defaults:\n  - _self_\n  - experiment: null\nlr: 1\n' >conf/train.yaml
printf '# @package _global_\n# A title.\nlr: 2\n' >conf/experiment/first.yaml
printf '\n# @package _global_\nlr: 2\n' >conf/experiment/after_an_empty_line.yaml
printf '# A title.\n# @package _global_\nlr: 2\n' >conf/experiment/after_a_comment.yaml
cat >read.py <<'P'
from pathlib import Path

from hydra import compose, initialize_config_dir

with initialize_config_dir(str(Path("conf").resolve()), version_base="1.3"):
    found = {name: compose("train", [f"experiment={name}"]) for name in ("first", "after_an_empty_line", "after_a_comment")}
for name, config in found.items():
    print(f"{name}: {config}")
assert found["first"] == found["after_an_empty_line"] == {"lr": 2}
assert found["after_a_comment"] == {"lr": 1, "experiment": {"lr": 2}}
P
venv/bin/python read.py
# Output seen:
#   first: {'lr': 2}
#   after_an_empty_line: {'lr': 2}
#   after_a_comment: {'lr': 1, 'experiment': {'lr': 2}}
