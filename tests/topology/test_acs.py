"""ACS by configuration spaces that are laid out by hand after the PCI Express specification."""

from pathlib import Path

import pytest

from trainkit.topology.discover.acs import is_on, redirects

REDIRECTS, VALIDATES = 0b100, 0b001


def space(*capabilities: tuple[int, bytes]) -> bytes:
    """A space whose extended capabilities follow one another: an id, and the bytes after the header."""
    config = bytearray(4096)
    place = 0x100
    for number, (identity, rest) in enumerate(capabilities):
        following = place + 0x40 if number + 1 < len(capabilities) else 0
        config[place : place + 4] = (identity | 1 << 16 | following << 20).to_bytes(4, "little")
        config[place + 4 : place + 4 + len(rest)] = rest
        place += 0x40
    return bytes(config)


def acs(control: int) -> tuple[int, bytes]:
    """The capability's bits say what the port could do: all of it; its control, what it does."""
    return 0x000D, bytes([0xFF, 0]) + control.to_bytes(2, "little")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (space(acs(REDIRECTS)), True),
        (space((0x0001, b""), acs(REDIRECTS | VALIDATES)), True),
        (space((0x0001, b""), acs(VALIDATES)), False),
        (space((0x0001, b"")), False),
        (space(acs(REDIRECTS))[:64], None),
        (b"", None),
    ],
)
def test_a_port_redirects_what_its_control_says(config, expected):
    assert redirects(config) is expected


def test_a_list_of_capabilities_that_leads_back_ends():
    config = bytearray(space((0x0001, b"")))
    config[0x100:0x104] = (1 | 0x100 << 20).to_bytes(4, "little")
    assert redirects(bytes(config)) is False


def test_one_port_that_redirects_is_enough(tmp_path: Path):
    ports = {"on": space(acs(REDIRECTS)), "off": space(acs(0)), "hidden": bytes(64)}
    for name, config in ports.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config").write_bytes(config)
    paths = {name: tmp_path / name for name in (*ports, "gone")}
    assert is_on([paths["on"], paths["off"], paths["hidden"]]) is True
    assert is_on([paths["off"], paths["gone"]]) is False
    assert is_on([paths["hidden"], paths["gone"]]) is None
