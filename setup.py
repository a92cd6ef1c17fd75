"""The commands that build trainkit, and its packages; all else about it is in pyproject.toml."""

import importlib.util
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).parent


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


if not (ROOT / "trainkit_recipes" / "__init__.py").is_file():  # a wheel without recipes would be built in silence
    sys.exit(f"{ROOT / 'trainkit_recipes'} must be a link to recipes/; type: ln -sfn recipes '{ROOT}/trainkit_recipes'")

setup(
    # conf/ lies at the top of a checkout, where users look for it, and inside trainkit in a wheel. trainkit_recipes is
    # a link to recipes/ in a checkout, and its files in a wheel.
    packages=[
        *find_packages(include=["trainkit", "trainkit.*", "trainkit_recipes", "trainkit_recipes.*"]),
        "trainkit.conf",
    ],
    package_dir={"trainkit.conf": "conf"},
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel, "bdist_wheel": BdistWheel},
)
