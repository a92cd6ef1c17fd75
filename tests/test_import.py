"""`import trainkit` stays light: what only some runs need is imported where it is used."""

import subprocess
import sys

HEAVY = ("hydra", "omegaconf", "pydantic", "wandb", "tensorboard", "deepspeed", "matplotlib", "pyarrow", "tokenizers")


def test_heavy_packages_are_not_imported():
    code = f"import sys, trainkit; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_are_there():
    import trainkit

    for name in trainkit.__all__:
        assert getattr(trainkit, name) is not None
        assert name in dir(trainkit)
