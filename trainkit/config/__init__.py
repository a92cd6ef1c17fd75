"""Configuration: composed by Hydra from conf/ and the command line, checked, and turned into objects."""

from trainkit.config.compose import (
    CONF_DIR,
    Node,
    build,
    build_partial,
    check,
    compose,
    compose_onto,
    compose_unresolved,
    flat,
    groups,
    resolve,
    to_yaml,
)

__all__ = [
    "CONF_DIR",
    "Node",
    "build",
    "build_partial",
    "check",
    "compose",
    "compose_onto",
    "compose_unresolved",
    "flat",
    "groups",
    "resolve",
    "to_yaml",
]
