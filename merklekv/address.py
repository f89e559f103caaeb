"""The address of a node, `host:port` with an IPv6 host in brackets: how it is read, written and checked.

Settings, commands, statuses and the table of members all use this module, so every part accepts the same addresses.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from merklekv.errors import InvalidArgument

ADDRESS_BYTES_MAX: Final = 300
HOST_BYTES_MAX: Final = 253
PORT_MAX: Final = 65_535
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 7379

_ADDRESS: Final = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^\[\]/:\s]+)):(?P<port>[0-9]{1,5})", re.ASCII)
# What can be nothing but a node: with a port, an IPv4 address, or `localhost`.
_NODE: Final = re.compile(rf"(?:{_ADDRESS.pattern})|:?[0-9]{{1,5}}|[0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}|localhost", re.A)
_HOST: Final = re.compile(rb"[A-Za-z0-9_.-]{1,%d}" % HOST_BYTES_MAX)
_SCOPE: Final = re.compile(r"[A-Za-z0-9_.-]*")


def format_address(host: str, port: int) -> str:
    """The text of an address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of an address. The host can be looked up, but may not exist. Raises InvalidArgument."""
    match = _ADDRESS.fullmatch(text) if len(text) <= ADDRESS_BYTES_MAX else None
    if match is None or not 0 < int(match["port"]) <= PORT_MAX:
        raise InvalidArgument(f"{text[:60]!r} is no address: give host:port")
    host: str = match["host"] or match["six"]
    if not (is_host(host) if match["host"] else is_ipv6(host)):
        raise InvalidArgument(f"{text[:60]!r} is no address: {host[:60]!r} is not a host name")
    return host, int(match["port"])


def is_address(text: str) -> bool:
    """Whether this is an address of at most ADDRESS_BYTES_MAX bytes."""
    try:
        parse_address(text)
    except InvalidArgument:
        return False
    return len(text.encode()) <= ADDRESS_BYTES_MAX


def parse_node(text: str) -> tuple[str, int]:
    """Host and port of a node as a person names it: `host:port`, `host`, `:port` or `port`. Raises InvalidArgument."""
    if text.isascii() and text.isdecimal():
        whole = f"{DEFAULT_HOST}:{text}"
    elif text.startswith(":"):
        whole = f"{DEFAULT_HOST}{text}"
    elif _ADDRESS.fullmatch(text):
        whole = text
    else:
        whole = f"{text}:{DEFAULT_PORT}"
    try:
        return parse_address(whole)
    except InvalidArgument as error:
        raise InvalidArgument(f"{text[:60]!r} is no address of a node: give HOST:PORT, HOST or PORT") from error


def has_node_form(text: str) -> bool:
    """Whether this is written like a node, with a valid host and port or not: a bare host may be anything."""
    return _NODE.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """Whether a name resolver accepts this: a host name, in any script, or an IPv4 address."""
    try:
        return _HOST.fullmatch(text.encode("idna")) is not None
    except UnicodeError:  # `a..b`, and labels of more than 63 bytes
        return False


def is_unspecified(host: str) -> bool:
    """Whether this is an address that stands for all of a machine: `0.0.0.0`, `::`."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    except ValueError:  # a name
        return False


def is_ipv6(text: str) -> bool:
    """Whether this is an IPv6 address, with or without a scope, without brackets."""
    number, percent, scope = text.partition("%")
    try:
        ipaddress.IPv6Address(number)
    except ValueError:
        return False
    return bool(percent) == bool(scope) and _SCOPE.fullmatch(scope) is not None
