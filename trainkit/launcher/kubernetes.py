"""Kubernetes: what a job asks for."""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from trainkit.errors import ConfigError, require_at_least
from trainkit.launcher.job import CPUS_PER_PROCESS, processes

REPLICATED = "node"
"""The name of the container, and of the job in a JobSet; Kubeflow Trainer expects it."""
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?")
_LONGEST_LABEL = 63


@dataclass(frozen=True, kw_only=True)
class Kubernetes:
    """A job of Kubernetes.

    Args:
        kind: `job`: an Indexed Job and a headless Service; `jobset`; or `trainjob` of Kubeflow Trainer.
        name: of the job, a label of DNS.
        namespace: of all that is made.
        image: of the pods.
        nodes: pods, one on each node.
        gpus_per_node: GPUs of each; 0: none.
        gpu_resource: as the device plugin names it.
        processes_per_node: of each; `auto`: one for each GPU, or one.
        cpus_per_node: CPUs of each; `auto`: 8 for each process.
        mem: memory of each, such as `500Gi`; None: no limit.
        shm_size: of /dev/shm, in memory.
        claim: name of the PersistentVolumeClaim that run directories are on.
        mount_path: where it is in the pods; relative paths are below it.
        claims: further ones, read only: names by path.
        time: seconds until the job is ended; None: no limit.
        grace_period: seconds from SIGTERM to SIGKILL.
        backoff_limit: starts of the whole job after failures.
        max_restarts: of the processes within a pod.
        user: number of the user and of the group.
        service_account: of the pods.
        node_selector: labels of the nodes.
        tolerations: of taints of the nodes, as in a pod.
        priority_class: of the pods.
        queue: of Kueue.
        secret: whose keys become variables.
        environment: variables.

    Raises:
        ConfigError: for a value that the cluster or the run could not use.
    """

    kind: Literal["job", "jobset", "trainjob"] = "job"
    name: str = "trainkit"
    namespace: str = "default"
    image: str | None = None
    nodes: int = 1
    gpus_per_node: int = 8
    gpu_resource: str = "nvidia.com/gpu"
    processes_per_node: int | Literal["auto"] = "auto"
    cpus_per_node: int | Literal["auto"] = "auto"
    mem: str | None = None
    shm_size: str = "16Gi"
    claim: str = "trainkit"
    mount_path: str = "/shared"
    claims: dict[str, str] = field(default_factory=dict)
    time: int | None = None
    grace_period: int = 180
    backoff_limit: int = 3
    max_restarts: int = 3
    user: int = 1000
    service_account: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    priority_class: str | None = None
    queue: str | None = None
    secret: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what the API server, or a pod after it, would refuse."""
        if self.image is None:
            raise ConfigError("cluster.image: give the image of the pods, such as one that launch/Dockerfile makes")
        require_at_least(1, "cluster.", nodes=self.nodes, time=self.time, user=self.user)
        require_at_least(0, "cluster.", gpus_per_node=self.gpus_per_node)
        require_at_least(0, "cluster.", max_restarts=self.max_restarts, backoff_limit=self.backoff_limit)
        require_at_least(30, "cluster.", grace_period=self.grace_period)
        for name in ("processes_per_node", "cpus_per_node"):
            if (value := getattr(self, name)) != "auto":
                require_at_least(1, "cluster.", **{name: value})
        for name in ("name", "namespace", "claim"):
            if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", value := getattr(self, name)):
                raise ConfigError(f"cluster.{name}={value}: must be small letters, digits and -, a letter first")
        if len(self.host(self.nodes - 1)) > _LONGEST_LABEL - len("-12345"):
            raise ConfigError(
                f"cluster.name={self.name}: is too long: pods are called {self.host(self.nodes - 1)}-12345, and "
                f"{_LONGEST_LABEL} letters are the most"
            )
        for name in ("mem", "shm_size"):
            if (value := getattr(self, name)) is not None and not _QUANTITY.fullmatch(value):
                raise ConfigError(f"cluster.{name}={value}: must be a number of bytes, such as 16Gi")
        for path in (self.mount_path, *self.claims):
            if not PurePosixPath(path).is_absolute():
                raise ConfigError(
                    f"{path}: is a path in the pods, and must begin with /, such as cluster.mount_path=/shared"
                )
        for variable in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", variable):
                raise ConfigError(f"cluster.environment.{variable}: is no name of a variable")

    @property
    def processes(self) -> int:
        """On each node."""
        return processes(self.processes_per_node, self.gpus_per_node)

    @property
    def cpus(self) -> int:
        """Of each node."""
        return CPUS_PER_PROCESS * self.processes if self.cpus_per_node == "auto" else int(self.cpus_per_node)

    def host(self, index: int) -> str:
        """The host name of a pod."""
        return f"{self.name}-{index}" if self.kind == "job" else f"{self.name}-{REPLICATED}-0-{index}"
