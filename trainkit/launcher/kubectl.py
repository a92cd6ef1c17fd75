"""kubectl: creates manifests on the cluster of the user's context."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from trainkit.errors import ClusterError, ConfigError

_ANSWER_S = 120.0


class _Plain(yaml.SafeDumper):
    """Without anchors: a value that stands in two places is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(manifests: Sequence[Mapping[str, Any]]) -> str:
    """Writes manifests as documents of YAML, in their order."""
    return yaml.dump_all([dict(one) for one in manifests], Dumper=_Plain, sort_keys=False, width=10_000)


def create(manifests: Sequence[Mapping[str, Any]]) -> None:
    """Creates manifests; nothing, where the API server would refuse one of them.

    Args:
        manifests: in their order.

    Raises:
        ConfigError: there is no kubectl here, or the API server refuses a manifest.
        ClusterError: it does not answer.
    """
    text = to_yaml(manifests)
    _kubectl(["create", "--dry-run=server", "-f", "-"], text)
    _kubectl(["create", "-f", "-"], text)


def _kubectl(arguments: Sequence[str], text: str) -> None:
    try:
        done = subprocess.run(
            ["kubectl", *arguments], input=text, capture_output=True, text=True, timeout=_ANSWER_S, check=False
        )
    except FileNotFoundError as error:
        raise ConfigError("--kubernetes: there is no kubectl on this host; --dry-run prints the manifests") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"kubectl {arguments[0]} has not answered within {_ANSWER_S:.0f} s") from error
    if done.returncode:
        raise ConfigError(f"kubectl {arguments[0]}: {' '.join(done.stderr.split()) or f'code {done.returncode}'}")
