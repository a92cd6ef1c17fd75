"""Container: files from which a container with the packages and the code of a run is built, here or elsewhere."""

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainkit import manifest
from trainkit.errors import ConfigError
from trainkit.reproduction.requirements import is_local, requirements

_SCRIPT = "reproduce.sh"
_PYTHON_IMAGE, _CUDA_IMAGE = "python:{python}-slim", "nvidia/cuda:{cuda}-devel-ubuntu24.04"


def write_container(run: Path, directory: Path) -> list[str]:
    """Writes a Dockerfile, its requirements, the configuration and an MLCube descriptor.

    Args:
        run: the directory of a run.
        directory: is made.

    Returns:
        Lines for the user: what to type.

    Raises:
        ConfigError: the directory exists and is not empty, or cannot be written.
        DataError: the run has no manifest, or it cannot be read.
    """
    found = manifest.read(run)
    files = {
        "Dockerfile": _dockerfile(found),
        "requirements.txt": "\n".join(requirements(found["environment"])) + "\n",
        "mlcube.yaml": _mlcube(found),
        _SCRIPT: _script(found),
        manifest.FILE_NAME: json.dumps(found, indent=1) + "\n",
        ".dockerignore": "*\n!requirements.txt\n!reproduce.sh\n!manifest.json\n!*.jsonl\n!trainkit\n",
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty: give another directory")
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
        (directory / _SCRIPT).chmod(0o755)
        for path in (*run.glob("*.diff"), run / "trace.jsonl", run / manifest.FILES):
            if path.is_file():
                shutil.copyfile(path, directory / path.name)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror or error}") from error
    return list(_advice(found, directory))


def _dockerfile(found: Mapping[str, Any]) -> str:
    environment, local = found["environment"], is_local(found["environment"])
    is_cuda = (local or "").startswith("cu") or bool(environment.get("cuda"))
    lines = [f"# Packages and code of the run {json.dumps(str(found['run'].get('name')))}, from its manifest."]
    python = str(environment.get("python"))
    if is_cuda:
        cuda = environment.get("cuda")
        version = str(cuda.get("torch_cuda")) if isinstance(cuda, Mapping) else ""
        minor = ".".join(python.split(".")[:2])
        lines += [
            f"FROM {_CUDA_IMAGE.format(cuda=f'{version}.0' if version.count('.') == 1 else version)}",
            "COPY --from=ghcr.io/astral-sh/uv:latest /uv /usr/local/bin/uv",
            f"RUN uv venv --seed --python {shlex.quote(minor)} /opt/run",
            "ENV PATH=/opt/run/bin:$PATH",
        ]
    else:
        lines += [f"FROM {_PYTHON_IMAGE.format(python=python)}"]
    lines += [
        "RUN apt-get update && apt-get install -y --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*",
        "WORKDIR /run",
        "COPY requirements.txt ./",
        "# An index with the build of torch that is meant, such as PyTorch's of CPU builds.",
        "ARG PIP_EXTRA_INDEX_URL=",
        "RUN pip install --no-cache-dir --no-deps -r requirements.txt",
        "# A checkout of trainkit at the commit of the run: see the advice of trainkit manifest container.",
        "COPY trainkit ./trainkit",
        "RUN pip install --no-cache-dir --no-deps --no-build-isolation ./trainkit",
        "COPY manifest.json *.jsonl ./original/",
        f"COPY {_SCRIPT} ./",
        f"ENV OMP_NUM_THREADS={_threads(found)}",
        'ENTRYPOINT ["trainkit"]',
        'CMD ["reproduce", "original", "--to", "/run/results"]',
    ]
    return "\n".join(lines) + "\n"


def _mlcube(found: Mapping[str, Any]) -> str:
    """A descriptor in the form of MLCube: one task that makes the run again, with the data as a mounted folder."""
    import yaml

    name = str(found["run"].get("name"))
    descriptor = {
        "name": name,
        "description": f"The run {name}, made again from its manifest by trainkit reproduce",
        "docker": {
            "image": f"trainkit/{''.join(c if c.isalnum() else '-' for c in name.lower())}",
            "build_context": ".",
        },
        "tasks": {
            "reproduce": {
                "entrypoint": f"/run/{_SCRIPT}",
                "parameters": {
                    "inputs": {"data_dir": {"type": "directory", "default": "data"}},
                    "outputs": {"results": {"type": "directory", "default": "results"}},
                },
            }
        },
    }
    return yaml.safe_dump(descriptor, sort_keys=False)


def _script(found: Mapping[str, Any]) -> str:
    """What MLCube calls with the folders that it mounts, as --data_dir=DIR and --results=DIR."""
    data = found["configuration"].get("data")
    path = data.get("path") if isinstance(data, Mapping) else None
    inside = f"/{Path(path).name}" if isinstance(path, str) and Path(path).suffix else ""
    given = f' "data.path=$data_dir"{shlex.quote(inside) if inside else ""}' if isinstance(path, str) else ""
    return f"""\
#!/bin/sh
# Makes the run again: reproduce.sh --data_dir=DIR --results=DIR
set -eu
data_dir=data results=results
for word in "$@"; do
    case $word in
        --data_dir=*) data_dir=${{word#*=}} ;;
        --results=*) results=${{word#*=}} ;;
    esac
done
exec trainkit reproduce original --to "$results/again"{given}
"""


def _threads(found: Mapping[str, Any]) -> int:
    number = found["training"].get("num_threads")
    return number if isinstance(number, int) and number > 0 else 1


def _advice(found: Mapping[str, Any], directory: Path) -> list[str]:
    states = found["code"].get("repositories")
    state: Any = next(iter(states.values()), {}) if isinstance(states, Mapping) else {}
    commit = state.get("commit") if isinstance(state, Mapping) else None
    where = shlex.quote(str(directory))
    lines = [f"wrote {', '.join(sorted(path.name for path in directory.iterdir()))} in {directory}"]
    if commit:
        lines.append(f"next: git clone URL_OF_TRAINKIT {where}/trainkit && git -C {where}/trainkit checkout {commit}")
    if isinstance(state, Mapping) and state.get("diff"):
        lines.append(f"next: git -C {where}/trainkit apply ../{state['diff']}")
    local = is_local(found["environment"])
    index = f" --build-arg PIP_EXTRA_INDEX_URL=INDEX_WITH_{local.upper()}_BUILDS" if local else ""
    lines.append(f"next: docker build -t run{index} {where}")
    lines.append("next: docker run --rm -v DATA:DATA:ro run")
    return lines
