"""Listening sockets on every address that a name has: `localhost` is 127.0.0.1 and ::1."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable
from typing import Any

from merklekv.errors import AddressInUse, AddressUnavailable
from merklekv.net.limits import BACKLOG

PROTECTED = (
    "protected mode: there is no authentication, so only clients on this machine are served; "
    "to serve others as well, start the node with --allow-remote"
)
PORT_ATTEMPTS = 20  # to find a port that is free at each address of a name


def is_loopback(host: str) -> bool:
    """Whether the address is a loopback one."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def listen(host: str, port: int) -> list[socket.socket]:
    """Listeners on every address of this machine that the name has, all on one port; 0 takes a free one.

    Raises AddressInUse and AddressUnavailable.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as problem:
        raise AddressUnavailable(f"cannot listen on {host}:{port}: {problem.strerror}") from problem
    except ValueError as problem:  # a label that is empty or too long, a NUL
        raise AddressUnavailable(f"cannot listen on {host}:{port}: {host!r} is not a host name") from problem
    for attempt in range(PORT_ATTEMPTS):
        try:
            return _listen_on(dict.fromkeys((one[0], one[4]) for one in found), port)
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                reason = os.strerror(problem.errno or 0)
                raise AddressUnavailable(f"cannot listen on {host}:{port}: {reason}") from problem
            if port or attempt == PORT_ATTEMPTS - 1:  # a port that was free at one address may be taken at the next
                raise AddressInUse(
                    f"port {port} of {host} is in use by another program: choose another one"
                ) from problem
    raise AssertionError("the last attempt returns or raises")


def _listen_on(addresses: Iterable[tuple[socket.AddressFamily, tuple[Any, ...]]], port: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    for family, (host, _, *rest) in addresses:
        try:
            dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
            address = (host, port, *rest)
            listeners.append(socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=dual))
        except OSError as problem:
            if problem.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                absent = problem  # another machine has it, or IPv6 is off
                continue
            for listener in listeners:
                listener.close()
            raise
        listeners[-1].setblocking(False)
        port = listeners[0].getsockname()[1]
    if absent is not None and not listeners:
        raise absent
    return listeners
