#!/usr/bin/env bash
# torch 2.13.0 (CPU build).
#
# A program asks for IEEE products in cuDNN through the settings that PyTorch recommends, one for convolutions and one for
# RNNs, both "ieee". A good guess: they mean the same for both kinds of operations, and torch.export does not depend on them.
# Seen: torch.export.export of a Linear, on a CPU, raises RuntimeError: it reads the legacy flag
# torch.backends.cudnn.allow_tf32, which says that the two "have different TF32 flags", though they have the same, and that
# legacy and new settings were mixed, though only new ones were made. With "tf32" for both it exports. torch.onnx.export
# ends the same way.
# trainkit's ONNX export sets both to tf32 for the time of the export: trainkit/export/onnx.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >export.py <<'P'
import torch

layer = torch.nn.Linear(2, 2).eval()


def export():
    try:
        torch.export.export(layer, (torch.ones(1, 2),))
        return "exported"
    except RuntimeError as error:
        return " ".join(str(error).split())[:185]


def set_both(precision):
    torch.backends.cudnn.conv.fp32_precision = precision
    torch.backends.cudnn.rnn.fp32_precision = precision


print("as it is:", before := export())
set_both("ieee")
print("both ieee:", ieee := export())
set_both("tf32")
print("both tf32:", tf32 := export())
assert before == tf32 == "exported"
assert "cuDNN conv and cuDNN RNN have different TF32 flags" in ieee
P
venv/bin/python export.py
# Output seen:
#   as it is: exported
#   both ieee: PyTorch is checking whether allow_tf32 is enabled for cuDNN without a specific operator name,but the current flag(s) indicate that cuDNN conv and cuDNN RNN have different TF32 flags.
#   both tf32: exported
