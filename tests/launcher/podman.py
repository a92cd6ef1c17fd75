"""Pods by podman. Their image is this machine: its /usr, its Python and this checkout are mounted, nothing is built."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/trainkit-machine:1"
SUBNET = "10.89.211"
PACKAGES = ("podman", "crun", "netavark", "aardvark-dns", "catatonit", "iptables")
_USER = 1000
# crun as it is, but for limits that a container without CAP_SYS_RESOURCE around it may not raise.
_RUNTIME = """\
#!/bin/bash
before=
for word in "$@"; do
    if [[ $before == --bundle ]]; then
        {python} -c '
import json, sys
with open(sys.argv[1], "r+") as file:
    config = json.load(file)
    config["process"].pop("rlimits", None)
    file.seek(0)
    file.truncate()
    json.dump(config, file)' "$word/config.json"
    fi
    before=$word
done
exec crun "$@"
"""
_CONTAINERS = """\
[engine]
runtime = "trainkit"
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
trainkit = ["{runtime}"]
[network]
network_backend = "netavark"
network_config_dir = "{directory}/networks"
"""
_STORAGE = """\
[storage]
driver = "{driver}"
graphroot = "{directory}/graph"
runroot = "{directory}/run"
"""


def require(*more: str) -> None:
    """Skips where there is no podman, or another program; CI, on a machine of its own, installs what is missing."""
    if os.geteuid() != 0:
        pytest.skip("pods of podman need root here: their network is the machine's")
    missing = [name for name in ("podman", "crun", "iptables", *more) if shutil.which(name) is None]
    if missing and os.environ.get("CI") == "true" and shutil.which("apt-get"):
        for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES, *more]):
            subprocess.run(["apt-get", "--quiet", *words], check=True, capture_output=True, timeout=300)
    elif missing:
        pytest.skip(
            f"needs {', '.join(missing)}: apt-get install --no-install-recommends {' '.join([*PACKAGES, *more])}"
        )
    if not ROOT.stat().st_mode & 0o005:
        pytest.skip(f"{ROOT} cannot be read by another user, and pods are not root")


@dataclass(frozen=True)
class Podman:
    """Commands of podman with storage of their own.

    Args:
        directory: of the storage.
        namespace: process id of the first process of the namespaces in which they run.
    """

    directory: Path
    namespace: int

    def run(self, *words: str, check: bool = True, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
        }
        command = ["nsenter", f"--target={self.namespace}", "--mount", "--net", "--pid", "podman", *words]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=self.directory
        )
        assert not check or done.returncode == 0, f"podman {words}: {done.stdout}{done.stderr}"
        return done

    def play(self, pod: Mapping[str, Any], index: int) -> None:
        """Starts a pod with the address that `address` says."""
        path = self.directory / f"pod{index}.yaml"
        path.write_text(yaml.safe_dump(dict(pod)))
        for is_last in (False, False, False, True):
            played = self.run(
                "kube", "play", "--replace", "--network", "trainkit", "--ip", address(index), str(path), check=is_last
            )
            if played.returncode == 0:
                return
            time.sleep(2)  # podman gives an address back some time after its pod has been removed

    def wait(self, *containers: str) -> list[int]:
        """Exit codes, once all have ended."""
        return [int(line) for line in self.run("wait", *containers).stdout.split()]

    def remove(self) -> None:
        """Removes all pods: also those of another job, which still have their addresses."""
        self.run("pod", "rm", "--all", "--force", "--time", "0")


def address(index: int) -> str:
    """Of a pod."""
    return f"{SUBNET}.{10 + index}"


@contextmanager
def podman(directory: Path, *, driver: str = "vfs", internet: bool = False) -> Iterator[Podman]:
    """An engine with the image of this machine, and a network; all that it has started ends with the context."""
    runtime = directory / "runtime"
    runtime.write_text(_RUNTIME.format(python=sys.executable))
    runtime.chmod(0o755)
    (directory / "containers.conf").write_text(_CONTAINERS.format(runtime=runtime, directory=directory))
    (directory / "storage.conf").write_text(_STORAGE.format(directory=directory, driver=driver))
    _write_image(directory / "image.tar")
    with _namespaces(internet) as namespace:
        engine = Podman(directory, namespace)
        entry = 'ENTRYPOINT ["/opt/bin/entry"]'
        path = "ENV PATH=/opt/bin:/usr/local/bin:/usr/bin:/bin"
        engine.run("import", "--change", path, "--change", entry, str(directory / "image.tar"), IMAGE)
        if not internet:  # it would be the machine's own
            engine.run("network", "create", "--subnet", f"{SUBNET}.0/24", "trainkit")
        try:
            yield engine
        finally:
            engine.run("pod", "rm", "--all", "--force", "--time", "0")
            engine.run("rm", "--all", "--force", "--time", "0")
            engine.run("image", "rm", "--all", "--force")


@contextmanager
def _namespaces(internet: bool) -> Iterator[int]:
    """A process in namespaces of its own, whose end ends all that was started in them.

    Pods have their network from a bridge there, not on the machine. Of cgroups the half of version 2 beside those of
    version 1 is hidden, since crun takes it for the whole.
    """
    script = (
        "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; "
        "mount -t tmpfs run /run; ip link set lo up; echo; read -r || true"
    )
    network = [] if internet else ["--net"]
    command = ["unshare", "--mount", *network, "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        (first,) = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        yield int(first)
        holder.stdin.close()


def pods_of(job: Mapping[str, Any], shared: Path) -> list[dict[str, Any]]:
    """The pods that the controller of Indexed Jobs makes of a Job, with folders of this machine as its claims."""
    name, template = job["metadata"]["name"], job["spec"]["template"]
    count = job["spec"]["completions"]
    hosts = [
        {"ip": address(i), "hostnames": [f"{name}-{i}.{template['spec']['subdomain']}", f"{name}-{i}"]}
        for i in range(count)
    ]
    pods = []
    for index in range(count):
        spec = json.loads(json.dumps(template["spec"]))
        (container,) = spec["containers"]
        del container["ports"]  # podman would publish them on the machine, which Kubernetes does not
        mounts = {str(path): path for path in (ROOT, sys.prefix, sys.base_prefix, "/usr")}
        for number, path in enumerate(mounts):
            container["volumeMounts"].append({"name": f"machine-{number}", "mountPath": path, "readOnly": True})
            spec["volumes"].append({"name": f"machine-{number}", "hostPath": {"path": path}})
        for volume in spec["volumes"]:
            if volume.pop("persistentVolumeClaim", None):
                volume["hostPath"] = {"path": str(shared)}
        spec |= {"hostname": f"{name}-{index}", "hostAliases": hosts}
        annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
        metadata = {"name": f"{name}-{index}", "annotations": annotations, "labels": template["metadata"]["labels"]}
        pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return pods


def _write_image(path: Path) -> None:
    """Folders to mount into, users, and an entry point that does not change what it is given."""
    files = {
        "etc/passwd": f"root:x:0:0::/root:/bin/sh\ntrainkit:x:{_USER}:{_USER}::/tmp:/bin/sh\n",
        "etc/group": f"root:x:0:\ntrainkit:x:{_USER}:\n",
        "opt/bin/entry": '#!/bin/sh\nexec "$@"\n',
        "opt/bin/trainkit": f'#!/bin/sh\nexec {sys.executable} -m trainkit.cli "$@"\n',
    }
    with tarfile.open(path, "w") as tar:
        for name in ("dev", "etc", "opt", "opt/bin", "proc", "root", "run", "shared", "sys", "tmp", "usr"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
        for name in ("bin", "lib", "lib64", "sbin"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for name, text in files.items():
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(text), 0o755
            tar.addfile(file, BytesIO(text.encode()))
