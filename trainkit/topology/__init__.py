"""The links of a machine: read, measured, and drawn."""

from typing import TYPE_CHECKING

from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.topology.presets import preset
    from trainkit.topology.topology import NETWORK, Device, Host, Link, Nic, Topology

__all__ = [
    "NETWORK",
    "Device",
    "Host",
    "Link",
    "Nic",
    "Topology",
    "preset",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Device": "trainkit.topology.topology",
            "Host": "trainkit.topology.topology",
            "Link": "trainkit.topology.topology",
            "NETWORK": "trainkit.topology.topology",
            "Nic": "trainkit.topology.topology",
            "Topology": "trainkit.topology.topology",
            "preset": "trainkit.topology.presets",
        },
    )
