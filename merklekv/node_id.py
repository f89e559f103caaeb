"""The id of a node: the one check of it, and the file `node-id` that keeps it in the data directory.

A node id is a level of MQTT topics, the client id at the broker, and a word in replies, logs and tables. Settings, the
file, events, statuses, member tables and commands all use this check, so no node stores or sends an id that another
one refuses.

Ids are compared byte by byte: two ids that differ in case, or in how Unicode composes a letter, are different.
"""

from __future__ import annotations

import functools
import secrets
import socket
import stat
import unicodedata
from pathlib import Path
from typing import Final

from merklekv.errors import Corruption, DirectoryUnwritable
from merklekv.files import replace_file

NODE_ID_BYTES_MAX: Final = 128
NODE_ID_RULE: Final = "1 to 128 bytes of UTF-8 without white space, control characters, '/', '+' and '#'"
NODE_ID_FILE: Final = "node-id"

_CACHED: Final = 4096  # the check runs for every message
_WILD: Final = frozenset("/+#")  # MQTT's own
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})  # control, format, half of a pair, separators
_RANDOM_BYTES: Final = 4  # at the end of a generated id


@functools.lru_cache(_CACHED)
def is_node_id(text: str) -> bool:
    """Whether this is a node id: NODE_ID_RULE, and only characters of text."""
    if not 0 < len(text) <= NODE_ID_BYTES_MAX or not all(map(_is_allowed, text)):
        return False
    return len(text.encode()) <= NODE_ID_BYTES_MAX


def _is_allowed(character: str) -> bool:
    number = ord(character)
    is_text = number & 0xFFFE != 0xFFFE and not 0xFDD0 <= number <= 0xFDEF  # brokers refuse these
    return is_text and character not in _WILD and unicodedata.category(character) not in _UNSEEN


def read_node_id(directory: Path, known: str = "") -> str | None:
    """The node id in a data directory, None when it has none yet. Raises Corruption, DirectoryUnwritable.

    `known`: the id in the directory's log, for the error message.
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
        raise _no_node_id(file, f"contains {text[:60]!r}" if text else "empty", known)
    return text


def _no_node_id(file: Path, what: str, known: str) -> Corruption:
    way_out = f"write '{known}' into it, which this node was called" if known else "write this node's id into it"
    return Corruption(
        f"{file}: {what}; a node id has {NODE_ID_RULE}; {way_out}, or give the id as replication.client_id"
    )


def stored_node_id(directory: Path, known: str = "") -> str:
    """The node id in a data directory. The first start makes one: the host's name and a random ending.

    Raises what `read_node_id` raises.
    """
    if (node_id := read_node_id(directory, known)) is not None:
        return node_id
    file = directory / NODE_ID_FILE
    node_id = f"{_host_name()}-{secrets.token_hex(_RANDOM_BYTES)}"
    try:
        replace_file(file, f"{node_id}\n".encode())
    except OSError as error:
        raise DirectoryUnwritable(f"{file}: cannot keep the node id: {error.strerror}") from error
    return node_id


def _host_name() -> str:
    """The allowed characters of this machine's name, which can be any bytes."""
    name = "".join(filter(_is_allowed, socket.gethostname()))
    return name.encode()[: NODE_ID_BYTES_MAX // 2].decode(errors="ignore") or "node"
