"""Configuration: composed by Hydra from conf/ and the command line, checked, and turned into objects."""

from trainkit.config.build import build, build_partial
from trainkit.config.check import check
from trainkit.config.cluster import cluster, of_cluster
from trainkit.config.compose import compose, compose_onto, compose_unresolved, resolve, to_yaml
from trainkit.config.directory import CONF_DIR, groups
from trainkit.config.schema import OF_RECIPES, arguments_of
from trainkit.config.tree import Node, flat

__all__ = [
    "CONF_DIR",
    "OF_RECIPES",
    "Node",
    "arguments_of",
    "build",
    "build_partial",
    "check",
    "cluster",
    "compose",
    "compose_onto",
    "compose_unresolved",
    "flat",
    "groups",
    "of_cluster",
    "resolve",
    "to_yaml",
]


def __dir__() -> list[str]:
    return sorted(__all__)
