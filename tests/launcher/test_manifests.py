"""What `trainkit launch --kubernetes` writes, held against the schemas of Kubernetes, JobSet and Kubeflow Trainer."""

import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from tests.launcher.jobs import launch
from trainkit.errors import ClusterError, ConfigError
from trainkit.launcher.job import Job
from trainkit.launcher.kubernetes import Kubernetes
from trainkit.launcher.manifests import manifests

EXAMPLES = Path(__file__).parents[2] / "launch" / "kubernetes"
IMAGE = "registry.example.com/trainkit:1.0"
KINDS = ("job", "jobset", "trainjob")
OLDEST, NEWEST = "1.31", "1.37"
MODELS = {
    "Job": models.IoK8sApiBatchV1Job,
    "JobSet": models.JobsetV1alpha2JobSet,
    "Service": models.IoK8sApiCoreV1Service,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}
EVERYTHING = {
    "service_account": "trainer",
    "node_selector": {"gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "priority_class": "high",
    "queue": "team",
    "secret": "wandb",
    "environment": {"NCCL_SOCKET_IFNAME": "eth0"},
    "claims": {"/data": "texts"},
    "time": 86400,
    "mem": "500Gi",
}


def made(kind, words=("recipe=bert",), **settings):
    cluster = Kubernetes(kind=kind, image=IMAGE, name="bert", **{"nodes": 2, **settings})
    return manifests(cluster, Job(words=words))


def job_spec(all_made):
    """Of the Indexed Job in what was made, of any kind."""
    found = all_made[-1] if all_made[-1]["kind"] != "TrainJob" else all_made[0]
    spec = found["spec"]
    if found["kind"] == "TrainingRuntime":
        spec = spec["template"]["spec"]
    return spec if found["kind"] == "Job" else spec["replicatedJobs"][0]["template"]["spec"]


def container(all_made):
    (one,) = job_spec(all_made)["template"]["spec"]["containers"]
    return one


def modelled(manifest):
    """What its model has taken of it: a field that it does not know is left out."""
    return MODELS[manifest["kind"]].from_dict(manifest).to_dict()


def require_valid(manifest):
    """Raises where a field is unknown, missing, or of the wrong type."""
    if manifest["kind"] in ("Job", "Service"):
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    "settings", [{}, EVERYTHING, {"gpus_per_node": 0, "processes_per_node": 2}], ids=["", "all", "cpu"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_know_every_field(kind, settings):
    all_made = made(kind, **settings)
    assert [modelled(manifest) for manifest in all_made] == all_made
    for manifest in all_made:
        require_valid(manifest)
    require_valid_pod(job_spec(all_made)["template"])


def require_valid_pod(template):
    """The models of JobSet and TrainJob do not go as deep as the schema of a pod."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", **template["metadata"]},
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, NEWEST, strict=True)


@pytest.mark.parametrize("place", ["spec", "template"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_is_found(kind, place):
    all_made = made(kind)
    if place == "spec":
        all_made[-1]["spec"]["nods"] = 2
    else:
        job_spec(all_made)["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        assert [modelled(manifest) for manifest in all_made] == all_made
        for manifest in all_made:
            require_valid(manifest)
        require_valid_pod(job_spec(all_made)["template"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_are_what_is_written(kind, capsys):
    text = (EXAMPLES / f"{kind}.yaml").read_text()
    command, _, rest = text.partition("\n")
    words = shlex.split(command.removeprefix("# "))
    assert words[:2] == ["trainkit", "launch"] and f"cluster.kind={kind}" in words
    assert launch(*words[2:]) == 0
    assert capsys.readouterr().out == rest


@pytest.mark.parametrize("kind", KINDS)
def test_exit_codes_decide_what_becomes_of_the_job(kind):
    spec = job_spec(made(kind))
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # no schema says that podFailurePolicy needs it
    wrong, saved, disrupted = spec["podFailurePolicy"]["rules"]
    name = container(made(kind))["name"]
    assert wrong == {"action": "FailJob", "onExitCodes": {"containerName": name, "operator": "In", "values": [2]}}
    assert saved == {"action": "Ignore", "onExitCodes": {"containerName": name, "operator": "In", "values": [75]}}
    assert disrupted["action"] == "Ignore"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


@pytest.mark.parametrize(("kind", "endpoint"), [("job", "bert-0.bert"), ("jobset", "bert-node-0-0.bert")])
def test_pods_meet_at_the_first_by_name(kind, endpoint):
    all_made = made(kind)
    template = job_spec(all_made)["template"]["spec"]
    assert f"--rdzv-endpoint={endpoint}:29400" in container(all_made)["args"]
    (rank,) = (one for one in container(all_made)["env"] if one["name"] == "PET_NODE_RANK")
    assert "job-completion-index" in rank["valueFrom"]["fieldRef"]["fieldPath"]
    if kind == "job":
        service = all_made[0]
        assert template["subdomain"] == service["metadata"]["name"] == "bert"
        assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
        assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": all_made[1]["metadata"]["name"]}
    else:
        assert all_made[0]["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}


def test_kubeflow_gives_the_rank_itself():
    """Its webhook refuses a TrainJob that sets PET_ variables."""
    runtime, job = made("trainjob")
    assert not [one for one in container([runtime, job])["env"] if one["name"].startswith("PET_")]
    assert job["spec"]["trainer"]["args"] == container([runtime, job])["args"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]


def test_the_agent_is_torchruns():
    """Its flags are those of torchrun, whose parser reads them."""
    from torch.distributed.run import get_args_parser

    words = container(made("job", words=("recipe=bert", "seed=1")))["args"]
    assert words[:2] == ["trainkit", "agent"]
    parsed = get_args_parser().parse_args(words[2:])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.max_restarts) == ("2", "8", 3)
    assert [parsed.training_script, *parsed.training_script_args] == ["run_dir=runs/bert", "recipe=bert", "seed=1"]


@pytest.mark.parametrize("kind", KINDS)
def test_pods_are_not_root_and_have_shared_memory(kind):
    spec = job_spec(made(kind))["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 1000
    assert spec["terminationGracePeriodSeconds"] == 180
    own = container(made(kind))
    assert own["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert "command" not in own  # the image's entry point stays
    mounts = {one["name"]: one["mountPath"] for one in own["volumeMounts"]}
    assert mounts == {"runs": "/shared", "shm": "/dev/shm"} and own["workingDir"] == "/shared"
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


def test_each_pod_that_fails_is_not_a_start_of_the_job():
    """All pods fail where the first one is lost."""
    assert job_spec(made("job", nodes=32, backoff_limit=3))["backoffLimit"] == 96
    assert job_spec(made("jobset", nodes=32))["backoffLimit"] == 0
    assert made("jobset", backoff_limit=3)[0]["spec"]["failurePolicy"]["maxRestarts"] == 3


def test_what_else_a_job_can_ask_for():
    all_made = made("job", **EVERYTHING)
    spec, own = job_spec(all_made)["template"]["spec"], container(all_made)
    assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("trainer", "high")
    assert spec["nodeSelector"] == {"gpu": "h100"} and spec["tolerations"] == EVERYTHING["tolerations"]
    assert all_made[1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert own["envFrom"] == [{"secretRef": {"name": "wandb"}}]
    assert {"name": "NCCL_SOCKET_IFNAME", "value": "eth0"} in own["env"]
    assert {"name": "claim-0", "mountPath": "/data", "readOnly": True} in own["volumeMounts"]
    assert all_made[1]["spec"]["activeDeadlineSeconds"] == 86400
    assert own["resources"]["limits"] == {"memory": "500Gi", "nvidia.com/gpu": "8"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"cluster.image: give the image"),
        (["cluster.image=x", "cluster.kind=pod"], r"cluster.kind='pod': .*'job', 'jobset' or 'trainjob'"),
        (["cluster.image=x", "cluster.name=BERT"], r"cluster.name=BERT: must be small letters"),
        (["cluster.image=x", f"cluster.name={'a' * 60}"], r"is too long: pods are called a+-0-12345"),
        (["cluster.image=x", "cluster.shm_size=much"], r"cluster.shm_size=much: must be a number of bytes"),
        (["cluster.image=x", "cluster.mount_path=shared"], r"shared: is a path in the pods, and must begin with /"),
        (["cluster.image=x", "run_dir=/tmp/mine"], r"run_dir=/tmp/mine: must be below cluster.mount_path=/shared"),
        (["cluster.image=x", "run_dir=../mine"], r"run_dir=../mine: must be below"),
        (["cluster.image=x", "cluster.nodse=2"], r"Did you mean 'cluster.nodes'"),
        (["cluster.image=x", "recipe.batchsize=8"], r"Did you mean 'recipe.batch_size'"),
        (["cluster.image=x", "--array", "2"], r"--array: is of Slurm"),
        (["cluster.image=x", "--after", "2"], r"--after: is of Slurm"),
        (["cluster=slurm"], r"cluster=slurm: is no cluster of --kubernetes"),
    ],
    ids=str,
)
def test_a_mistake_is_found_before_anything_is_created(words, says, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=says):
        launch("--kubernetes", *words)


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """A stand-in that writes down what it is called with."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/calls\ncat >{tmp_path}/given\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path


def test_the_server_checks_all_before_anything_is_created(kubectl, capsys):
    assert launch("--kubernetes", f"cluster.image={IMAGE}", "cluster.name=bert", "recipe=bert") == 0
    assert capsys.readouterr().out == "bert\n"
    assert (kubectl / "calls").read_text().splitlines() == ["create --dry-run=server -f -", "create -f -"]
    kinds = [one["kind"] for one in yaml.safe_load_all((kubectl / "given").read_text())]
    assert kinds == ["Service", "Job"]


def test_without_kubectl_or_against_the_servers_will(kubectl, monkeypatch):
    program = kubectl / "bin" / "kubectl"
    words = ("--kubernetes", f"cluster.image={IMAGE}", "recipe=bert")
    program.write_text(
        f"#!/bin/bash\necho x >>{kubectl}/calls\necho 'Error: jobs \"trainkit\" already exists' >&2\nexit 1\n"
    )
    with pytest.raises(ConfigError, match='kubectl create: Error: jobs "trainkit" already exists'):
        launch(*words)
    assert (kubectl / "calls").read_text() == "x\n"
    program.write_text("#!/bin/bash\nexec sleep 60\n")
    monkeypatch.setattr("trainkit.launcher.kubectl._ANSWER_S", 0.2)
    with pytest.raises(ClusterError, match="has not answered"):
        launch(*words)
    monkeypatch.setenv("PATH", str(kubectl / "empty"))
    with pytest.raises(ConfigError, match="no kubectl on this host; --dry-run prints the manifests"):
        launch(*words)


def test_the_file_and_the_class_have_the_same_defaults():
    from trainkit.config import cluster

    assert cluster([f"cluster.image={IMAGE}"], "kubernetes") == Kubernetes(image=IMAGE)
