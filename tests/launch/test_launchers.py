"""The rank variables of srun, mpirun, mpiexec and jsrun, as those set them, become those of torchrun."""

import pytest

from trainkit.distributed import launchers, nodes
from trainkit.distributed.cluster import Cluster, current_cluster
from trainkit.distributed.processes import require_no_job
from trainkit.errors import ClusterError, UsageError

MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_MCA_ess_base_jobid": "52887553",
    "OMPI_MCA_orte_hnp_uri": "52887552.0;tcp://192.0.2.2,198.51.100.2:33521;tcp6://[2001:db8::2]:49125",
}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)",
    "SLURM_STEP_NODELIST": "localhost,b[2-3]",
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
JSRUN = {
    "JSM_NAMESPACE_RANK": "2",
    "JSM_NAMESPACE_SIZE": "4",
    "JSM_NAMESPACE_LOCAL_RANK": "0",
    "JSM_NAMESPACE_LOCAL_SIZE": "2",
    "LSB_JOBID": "9",
}
DAEMONS = {  # the step in which mpirun has started one daemon on each of two nodes
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_STEP_NODELIST": "localhost,b2",
}


@pytest.mark.parametrize(
    ("told", "expected", "address"),
    [
        (MPI, (5, 8, 1, 4), "192.0.2.2"),
        (MPI | DAEMONS, (5, 8, 1, 4), "localhost"),
        (SRUN, (3, 4, 0, 1), "localhost"),
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4, 0, 1), "localhost"),  # srun --mpi=pmi2
        (HYDRA, (1, 2, 1, 2), "127.0.0.1"),
        (HYDRA | {"PMI_SIZE": "4", "MASTER_ADDR": "a"}, (1, 4, 1, 2), "a"),
        (JSRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "7"}, (2, 4, 0, 2), "a"),
    ],
)
def test_variables_are_translated(told, expected, address):
    environment = dict(told)
    launchers.join(environment)
    assert Cluster.from_environment(environment) == Cluster(*expected)
    assert environment["MASTER_ADDR"] == address
    assert told.get("MASTER_PORT", environment["MASTER_PORT"]) == environment["MASTER_PORT"]
    assert 7 <= int(environment["MASTER_PORT"]) < 30000


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # of a batch shell
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        SRUN | {"RANK": "5", "WORLD_SIZE": "8"},  # torchrun's
    ],
)
def test_one_process_and_torchruns_are_left_alone(told):
    environment = dict(told)
    launchers.join(environment)
    assert environment == told


def test_the_hosts_of_lsf(tmp_path):
    (tmp_path / "ranks").write_text("batch1\nlocalhost\nlocalhost\nb2\nb2\n")
    environment = JSRUN | {"LSB_DJOB_RANKFILE": str(tmp_path / "ranks")}
    launchers.join(environment)
    assert environment["MASTER_ADDR"] == "localhost"


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (HYDRA | {"PMI_SIZE": "4"}, "mpiexec has started 4 processes on several hosts.*set MASTER_ADDR to the name"),
        (JSRUN, "jsrun has started 4 processes on several hosts.*set MASTER_ADDR"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "many"}, "srun has started 4 processes .*set RANK, WORLD_SIZE"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun has started 4 processes .*set RANK, WORLD_SIZE"),
        (SRUN | {"SLURM_PROCID": "0", "MASTER_ADDR": "192.0.2.1"}, "rank 0 on .*, which is not MASTER_ADDR=192.0.2.1"),
        (SRUN | {"SLURM_STEP_NODELIST": "no-such-node.invalid"}, "no-such-node.invalid has no address here"),
    ],
)
def test_what_is_missing_is_named(told, says):
    with pytest.raises(ClusterError, match=says):
        launchers.join(dict(told))


def test_jobs_and_steps_choose_different_ports():
    ports = {nodes.port_of(str(job), str(step)) for job in range(20) for step in range(5)}
    assert len(ports) > 95 and all(20000 <= port < 30000 for port in ports)


def test_a_process_of_a_launcher_starts_no_job_of_its_own(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in HYDRA.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"already belongs to a job .*PMI_SIZE=2"):
        require_no_job("--processes=2")


def test_an_own_loop_joins_too(monkeypatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        launchers.JOINED,
    ):
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)
    for name, value in HYDRA.items():
        monkeypatch.setenv(name, value)
    assert current_cluster() == Cluster(1, 2, 1, 2)
