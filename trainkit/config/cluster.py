"""The group `cluster`: where `trainkit launch` runs a job; no part of the configuration of a run."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from trainkit.config.build import build
from trainkit.config.check import checked_node
from trainkit.config.compose import by_hydra, resolve
from trainkit.config.directory import CONF_DIR
from trainkit.config.overrides import read
from trainkit.config.schema import takes_text
from trainkit.config.tree import adds_key, place
from trainkit.errors import ConfigError, nearest

_GROUP = "cluster"
_FILE = "launch"


def of_cluster(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits `key=value` into those of the cluster and those of the run.

    Example:
        >>> of_cluster(["cluster.nodes=4", "recipe=bert"])
        (['cluster.nodes=4'], ['recipe=bert'])
    """
    own = [word for word in words if word.lstrip("+").startswith((f"{_GROUP}=", f"{_GROUP}."))]
    return own, [word for word in words if word not in own]


def cluster(overrides: Sequence[str], default: str, config_dir: str | Path | None = None) -> Any:
    """Makes the cluster that a file of `conf/cluster/` and overrides describe.

    Args:
        overrides: `cluster=NAME` and `cluster.KEY=VALUE`.
        default: the file where no override names one.
        config_dir: a directory laid out like `conf/`, whose files are found before ours.

    Returns:
        What the file's `_target_` names, such as `trainkit.launcher.slurm.Slurm`.

    Raises:
        ConfigError: naming the key, the value, what is allowed, and the nearest valid name.
    """
    given = read(overrides)
    chosen = next((override.raw for override in reversed(given) if override.key == _GROUP), default)
    options = _options(config_dir)
    if chosen not in options:
        raise ConfigError(
            f"{_GROUP}={chosen}: must be one of {', '.join(options)}, files of conf/{_GROUP}/."
            f"{nearest(chosen, options)}"
        )
    try:
        tree = by_hydra(_FILE, [f"{_GROUP}={chosen}"], config_dir)
    except (HydraException, OmegaConfBaseException) as error:
        message = re.sub(r"\s+", " ", str(error))
        raise ConfigError(f"{_GROUP}={chosen}: {message}") from error
    for override in given:
        if override.key != _GROUP:
            is_text = override.is_a_guess and takes_text(tree, override.key)
            value = override.raw if is_text else override.value
            place(tree, override.key, value, is_new=adds_key(tree, override.key))
    return build(checked_node(_GROUP, resolve(tree)[_GROUP]))


def _options(config_dir: str | Path | None) -> list[str]:
    roots = (CONF_DIR, *([Path(config_dir).expanduser()] if config_dir is not None else []))
    return sorted({path.stem for root in roots for path in (root / _GROUP).glob("*.yaml")})
