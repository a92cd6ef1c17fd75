"""Access: who may read a dashboard."""

import hmac
import ipaddress
import secrets
import socket
from http.cookies import CookieError, SimpleCookie

from trainkit.errors import ConfigError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Access:
    """Decides by the headers of a request. On a loopback address everyone on this machine may read; beyond, a token.

    Args:
        host: that the server listens on.
        is_local: whether it is a loopback address.
    """

    def __init__(self, host: str, *, is_local: bool) -> None:
        self.is_local = is_local
        self.token = None if is_local else secrets.token_urlsafe(24)
        self._names = {*LOCAL_NAMES, host.lower()}

    def knows(self, host: str | None) -> bool:
        """Whether the Host header names this machine: a page of others whose name was bound to it does not.

        With a token every name is accepted, since the browser keeps the cookie for the name that it was given under.
        """
        if not self.is_local:
            return True
        name = (host or "").lower()
        name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
        return name in self._names

    def is_token(self, given: str | None) -> bool:
        """Whether the token was given, compared in constant time."""
        return self.token is not None and hmac.compare_digest((given or "").encode(), self.token.encode())

    def may_read(self, cookies: str | None, port: int) -> bool:
        """Whether the Cookie header holds the token, or none is needed."""
        if self.token is None:
            return True
        try:
            held = SimpleCookie(cookies or "").get(_name(port))
        except CookieError:
            return False
        return held is not None and self.is_token(held.value)

    def cookie(self, port: int) -> str:
        """The Set-Cookie header for a browser that has given the token."""
        return f"{_name(port)}={self.token}; Path=/; HttpOnly; SameSite=Strict"


def _name(port: int) -> str:
    return f"trainkit_{port}"  # cookies do not keep ports apart


def address_of(host: str, port: int) -> tuple[socket.AddressFamily, str, bool]:
    """Resolves a host that is to be listened on.

    Args:
        host: a name or an address.
        port: of the server.

    Returns:
        The family, the address, and whether it is reached from this machine only.

    Raises:
        ConfigError: it has no address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host={host}: has no address ({error}); type 127.0.0.1, or 0.0.0.0 for all") from error
    family, _, _, _, address = found[0]
    return family, str(address[0]), ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
