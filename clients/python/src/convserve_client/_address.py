"""Where servers are: "HOST:PORT", "[IPV6]:PORT" or "unix:PATH", one or several of them."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from convserve_client.errors import UnavailableError

_log = logging.getLogger(__name__)

IP = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Address:
    """One address as it was given; `host` is empty for a Unix socket."""

    text: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: object) -> Address:
        if not isinstance(text, str):
            raise TypeError(f"address must be a string, got {type(text).__name__}")
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(text, "", 0)
        host, _, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if ":" in bare and bare == host:  # IPv6 without brackets: which colon is the port's?
            bare = ""
        known = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16
        if not known or not bare or set(bare) & set("/ ,[]"):
            raise ValueError(f"address must be HOST:PORT, without a scheme, got {text!r}")
        return cls(text, bare, int(port))

    @property
    def is_local(self) -> bool:
        """Whether what is sent there stays on this machine."""
        if not self.host or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def resolve(self) -> list[IP]:
        """Its IP addresses."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UnavailableError(f"address {self.text!r} can't be resolved: {error}") from None
        ips = [ipaddress.ip_address(entry[4][0]) for entry in found]
        # A name such as localhost has both kinds; a server often listens on one, and on IPv4.
        return [ip for ip in ips if ip.version == 4] or ips


def parse_all(address: str | Sequence[str]) -> tuple[Address, ...]:
    """The address, or the addresses, each once."""
    if isinstance(address, str | bytes) or not isinstance(address, Sequence):
        return (Address.parse(address),)
    if not address:
        raise ValueError("address must name at least one server, got an empty sequence")
    addresses = tuple(dict.fromkeys(Address.parse(one) for one in address))
    files = [one.text for one in addresses if not one.host]
    if files and len(addresses) > 1:
        raise ValueError(f"{files[0]!r} can't be one of several addresses: it is a socket file")
    return addresses


def target(addresses: Sequence[Address]) -> str:
    """What gRPC is to connect to; several addresses are resolved here, once.

    UnavailableError if none of them can be.
    """
    if len(addresses) == 1:
        return addresses[0].text
    found: dict[tuple[IP, int], None] = {}
    lost: list[UnavailableError] = []
    for one in addresses:
        try:
            found.update(dict.fromkeys((ip, one.port) for ip in one.resolve()))
        except UnavailableError as error:
            lost.append(error)
    if not found:
        raise lost[0]
    for error in lost:  # a server that is gone may have no name either, and the others serve on
        _log.warning("%s; this client does without it", error.details)
    if all(ip.version == 4 for ip, _ in found):
        return "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in found)
    mixed = ((f"::ffff:{ip}" if ip.version == 4 else str(ip), port) for ip, port in found)
    return "ipv6:" + ",".join(f"[{ip}]:{port}" for ip, port in mixed)
