"""What a node is called and where it is reached: the one check of node ids and addresses, for every way in.

Flags, environment, configuration file and the file `node-id` pass through here, and so does what other nodes and
clients say: events, statuses, tables of members, commands.  A node id is a level of MQTT topics, a client id at the
broker, and a word in replies, logs and tables.  What one node takes, all take; so nothing is stored or passed on that a
reader refuses.

Ids are compared byte by byte: ones that differ in case, or in how Unicode composes a letter, are different.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import secrets
import socket
import stat
import unicodedata
from pathlib import Path
from typing import Final

from merklekv.errors import Corruption, DirectoryUnwritable, InvalidArgument
from merklekv.private import private

NODE_ID_BYTES_MAX: Final = 128
ADDRESS_BYTES_MAX: Final = 300
HOST_BYTES_MAX: Final = 253
PORT_MAX: Final = 65_535
NODE_ID_RULE: Final = "1 to 128 bytes of UTF-8 without white space, control characters, '/', '+' and '#'"
NODE_ID_FILE: Final = "node-id"

_CACHED: Final = 4096  # the check is made for every message
_WILD: Final = frozenset("/+#")  # MQTT's own
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})  # control, format, half of a pair, separators
ADDRESS: Final = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^\[\]/:\s]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_HOST: Final = re.compile(rb"[A-Za-z0-9_.-]{1,%d}" % HOST_BYTES_MAX)
_SCOPE: Final = re.compile(r"[A-Za-z0-9_.-]*")
_RANDOM_BYTES: Final = 4  # at the end of an id that a node gives itself


@functools.lru_cache(_CACHED)
def is_node_id(text: str) -> bool:
    """Whether a node may be called so: NODE_ID_RULE, and no character that Unicode has for no text."""
    if not 0 < len(text) <= NODE_ID_BYTES_MAX or not all(map(_may_be_in_an_id, text)):
        return False
    return len(text.encode()) <= NODE_ID_BYTES_MAX


def _may_be_in_an_id(character: str) -> bool:
    number = ord(character)
    is_text = number & 0xFFFE != 0xFFFE and not 0xFDD0 <= number <= 0xFDEF  # brokers refuse these
    return is_text and character not in _WILD and unicodedata.category(character) not in _UNSEEN


def is_host(text: str) -> bool:
    """Whether a name resolver takes this: a host name, in any script, or an IPv4 address."""
    try:
        return _HOST.fullmatch(text.encode("idna")) is not None
    except UnicodeError:  # `a..b`, and labels of more than 63 bytes
        return False


def is_address(text: str) -> bool:
    """Whether this is `host:port`, an IPv6 host in brackets, in at most ADDRESS_BYTES_MAX bytes."""
    try:
        split_address(text)
    except InvalidArgument:
        return False
    return len(text.encode()) <= ADDRESS_BYTES_MAX


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, an IPv6 host in brackets.  Raises InvalidArgument.

    The host may still be one that nobody has, but it is one that can be looked up.
    """
    match = ADDRESS.fullmatch(text) if len(text) <= ADDRESS_BYTES_MAX else None
    if match is None or not 0 < int(match["port"]) <= PORT_MAX:
        raise InvalidArgument(f"{text[:60]!r} is no address: give host:port")
    host: str = match["host"] or match["six"]
    if not (is_host(host) if match["host"] else is_ipv6(host)):
        raise InvalidArgument(f"{text[:60]!r} is no address: {host[:60]!r} is not a host name")
    return host, int(match["port"])


def is_ipv6(text: str) -> bool:
    """Whether this is an IPv6 address, with its scope if it has one, without brackets."""
    number, percent, scope = text.partition("%")
    try:
        ipaddress.IPv6Address(number)
    except ValueError:
        return False
    return bool(percent) == bool(scope) and _SCOPE.fullmatch(scope) is not None


def read_node_id(directory: Path, known: str = "") -> str | None:
    """The node id that a data directory keeps; None when it keeps none yet.

    `known`: the id that its log has for it, to be told.  Raises Corruption, DirectoryUnwritable.
    """
    file = directory / NODE_ID_FILE
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise _no_node_id(file, "not a file", known)
        with file.open("rb") as opened:
            text = opened.read(2 * NODE_ID_BYTES_MAX).decode().strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise _no_node_id(file, "not UTF-8 text", known) from None
    except OSError as error:
        raise DirectoryUnwritable(f"{file}: cannot read the node id: {error.strerror}") from error
    if not is_node_id(text):
        raise _no_node_id(file, f"holds {text[:60]!r}" if text else "empty", known)
    return text


def _no_node_id(file: Path, what: str, known: str) -> Corruption:
    way_out = f"write '{known}' into it, which this node was called" if known else "write this node's id into it"
    return Corruption(
        f"{file}: {what}; a node id has {NODE_ID_RULE}; {way_out}, or give the id as replication.client_id"
    )


def stored_node_id(directory: Path, known: str = "") -> str:
    """The node id of this data directory, made at the first start: the host's name and a random ending.

    Raises Corruption, DirectoryUnwritable, see `read_node_id`.
    """
    if (node_id := read_node_id(directory, known)) is not None:
        return node_id
    file = directory / NODE_ID_FILE
    node_id = f"{_host_name()}-{secrets.token_hex(_RANDOM_BYTES)}"
    draft = file.with_suffix(".new")
    try:
        with open(draft, "w", opener=private) as out:
            out.write(node_id + "\n")
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except OSError as error:
        raise DirectoryUnwritable(f"{file}: cannot keep the node id: {error.strerror}") from error
    return node_id


def _host_name() -> str:
    """The name of this machine as far as it can be in a node id: the kernel takes any bytes."""
    name = "".join(filter(_may_be_in_an_id, socket.gethostname()))
    return name.encode()[: NODE_ID_BYTES_MAX // 2].decode(errors="ignore") or "node"
