"""Manifests of Kubernetes: an Indexed Job with its Service, a JobSet, a TrainJob with its runtime."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from trainkit.errors import ConfigError
from trainkit.launcher.job import Job
from trainkit.launcher.kubernetes import REPLICATED, Kubernetes

_PORT = 29400
_CONFIGURATION, _SAVED = 2, 75
"""Exit codes: an error that would repeat; saved, start me again."""
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_Manifest = dict[str, Any]


def manifests(cluster: Kubernetes, job: Job) -> list[Mapping[str, Any]]:
    """Writes what to create, in this order.

    Args:
        cluster: what the job asks for.
        job: the run.

    Raises:
        ConfigError: its run directory is not on the claim, and would be lost with a pod.
    """
    run_dir = PurePosixPath(job.run_dir or f"runs/{cluster.name}")
    if not (PurePosixPath(cluster.mount_path) / run_dir).is_relative_to(cluster.mount_path) or ".." in run_dir.parts:
        raise ConfigError(
            f"run_dir={run_dir}: must be below cluster.mount_path={cluster.mount_path}, where the claim is mounted: "
            f"what is elsewhere in a pod is lost with it"
        )
    arguments = [
        "trainkit",
        "agent",
        f"--nnodes={cluster.nodes}",
        f"--nproc-per-node={cluster.processes}",
        f"--max-restarts={cluster.max_restarts}",
        f"--shutdown-timeout={cluster.grace_period - 20}",
        f"--rdzv-id={cluster.name}",
        f"--rdzv-endpoint={cluster.host(0)}.{cluster.name}:{_PORT}",
        *job.options,
        f"run_dir={run_dir}",
        *job.words,
    ]
    return {"job": _indexed_job, "jobset": _job_set, "trainjob": _train_job}[cluster.kind](cluster, arguments)


def _indexed_job(cluster: Kubernetes, arguments: Sequence[str]) -> list[Mapping[str, Any]]:
    """A headless Service, by which pods find one another, and an Indexed Job."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(cluster),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # the first pod waits for the others before it is ready
            "selector": {"batch.kubernetes.io/job-name": cluster.name},
            "ports": [{"name": "rendezvous", "port": _PORT, "protocol": "TCP"}],
        },
    }
    template = _template(cluster, arguments, {"subdomain": cluster.name})
    # One that loses the first pod fails everywhere: each pod is a failure, and one start of the job.
    spec = _job_spec(cluster, template, backoff_limit=cluster.backoff_limit * cluster.nodes)
    if cluster.time is not None:
        spec = {"activeDeadlineSeconds": cluster.time, **spec}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(cluster, queued=True), "spec": spec}
    return [service, job]


def _job_set(cluster: Kubernetes, arguments: Sequence[str]) -> list[Mapping[str, Any]]:
    """A JobSet, whose controller makes the Service."""
    spec = _job_set_spec(cluster, _template(cluster, arguments, {}))
    metadata = _metadata(cluster, queued=True)
    return [{"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}]


def _train_job(cluster: Kubernetes, arguments: Sequence[str]) -> list[Mapping[str, Any]]:
    """A TrainJob, and a TrainingRuntime of its own, since only that can say which exit codes are no failures."""
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(cluster),
        "spec": {
            "mlPolicy": {"numNodes": cluster.nodes, "torch": {}},
            "template": {
                "spec": _job_set_spec(cluster, _template(cluster, arguments, {}, has_rank=False), ancestor=True)
            },
        },
    }
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(cluster, queued=True),
        "spec": {
            **({"activeDeadlineSeconds": cluster.time} if cluster.time is not None else {}),
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": cluster.name},
            "trainer": {
                "image": cluster.image,
                "args": [*arguments],
                "numNodes": cluster.nodes,
                "numProcPerNode": cluster.processes,
                "resourcesPerNode": _resources(cluster),
            },
        },
    }
    return [runtime, job]


def _job_set_spec(cluster: Kubernetes, template: _Manifest, *, ancestor: bool = False) -> _Manifest:
    spec = _job_spec(cluster, template, backoff_limit=0)  # a failure of one pod starts all of them again
    if cluster.time is not None and not ancestor:
        spec = {"activeDeadlineSeconds": cluster.time, **spec}
    labels = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": cluster.backoff_limit,
            "rules": [
                {"name": "configuration", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
            ],
        },
        "replicatedJobs": [
            {
                "name": REPLICATED,
                "replicas": 1,
                "template": {**({"metadata": labels} if ancestor else {}), "spec": spec},
            }
        ],
    }


def _job_spec(cluster: Kubernetes, template: _Manifest, *, backoff_limit: int) -> _Manifest:
    return {
        "completionMode": "Indexed",
        "completions": cluster.nodes,
        "parallelism": cluster.nodes,
        "backoffLimit": backoff_limit,
        "podReplacementPolicy": "Failed",  # not while one with the same index still saves
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": _codes(_CONFIGURATION)},
                {"action": "Ignore", "onExitCodes": _codes(_SAVED)},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": template,
    }


def _codes(code: int) -> _Manifest:
    return {"containerName": REPLICATED, "operator": "In", "values": [code]}


def _template(
    cluster: Kubernetes, arguments: Sequence[str], network: Mapping[str, Any], *, has_rank: bool = True
) -> _Manifest:
    """A pod; Kubeflow Trainer gives the rank itself."""
    alone = {
        "serviceAccountName": cluster.service_account,
        "priorityClassName": cluster.priority_class,
        "nodeSelector": cluster.node_selector,
        "tolerations": cluster.tolerations,
    }
    volumes = {"runs": cluster.claim} | {f"claim-{i}": name for i, name in enumerate(cluster.claims.values())}
    claims = [{"name": name, "persistentVolumeClaim": {"claimName": claim}} for name, claim in volumes.items()]
    spec = {
        **network,
        "restartPolicy": "Never",  # what podFailurePolicy needs
        "terminationGracePeriodSeconds": cluster.grace_period,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "runAsGroup": cluster.user,
            "fsGroup": cluster.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **{key: value for key, value in alone.items() if value},
        "containers": [_container(cluster, arguments, has_rank=has_rank)],
        "volumes": [*claims, {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shm_size}}],
    }
    return {"metadata": {"labels": _labels(cluster)}, "spec": spec}


def _container(cluster: Kubernetes, arguments: Sequence[str], *, has_rank: bool) -> _Manifest:
    rank = [{"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}] if has_rank else []
    variables = {
        "OMP_NUM_THREADS": str(max(1, cluster.cpus // cluster.processes)),
        "TRAINKIT_CACHE": f"{cluster.mount_path}/cache",
        **cluster.environment,
    }
    secret = [{"secretRef": {"name": cluster.secret}}] if cluster.secret is not None else []
    read_only = [{"name": f"claim-{i}", "mountPath": path, "readOnly": True} for i, path in enumerate(cluster.claims)]
    return {
        "name": REPLICATED,
        "image": cluster.image,
        "args": [*arguments],  # and no command, which would replace the image's entry point
        "workingDir": cluster.mount_path,
        "env": [*rank, *({"name": name, "value": value} for name, value in variables.items())],
        **({"envFrom": secret} if secret else {}),
        "ports": [{"name": "rendezvous", "containerPort": _PORT, "protocol": "TCP"}],
        "resources": _resources(cluster),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "runs", "mountPath": cluster.mount_path},
            *read_only,
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _resources(cluster: Kubernetes) -> _Manifest:
    memory = {"memory": cluster.mem} if cluster.mem is not None else {}
    gpus = {cluster.gpu_resource: str(cluster.gpus_per_node)} if cluster.gpus_per_node else {}
    limits = {**memory, **gpus}
    return {"requests": {"cpu": str(cluster.cpus), **limits}, **({"limits": limits} if limits else {})}


def _labels(cluster: Kubernetes) -> dict[str, str]:
    return {"app.kubernetes.io/name": "trainkit", "app.kubernetes.io/instance": cluster.name}


def _metadata(cluster: Kubernetes, *, queued: bool = False) -> _Manifest:
    queue = {"kueue.x-k8s.io/queue-name": cluster.queue} if queued and cluster.queue is not None else {}
    return {"name": cluster.name, "namespace": cluster.namespace, "labels": {**_labels(cluster), **queue}}
