"""Opens what the user named: DIR, a data directory, or HOST:PORT, a running node.

What exists is a directory. Else PORT, :PORT and localhost are nodes, too, and every other host where a verb takes
nothing but a node.

A directory that another process has open is refused, with that process's number: its data is safe to read only through
the node's port.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from merklekv.address import has_node_form, parse_node
from merklekv.engine.directory import require_format
from merklekv.errors import DirectoryLocked, InvalidArgument, NotADataDirectory
from merklekv.net.client import REPLY_TIMEOUT_S
from merklekv_tool.errors import FileError, NodeRuns
from merklekv_tool.source.directory import Directory
from merklekv_tool.source.node import Node
from merklekv_tool.source.source import Source

if TYPE_CHECKING:
    from merklekv.engine.engine import Engine


def address_of(name: str) -> tuple[str, int] | None:
    """Host and port, or None if `name` means a directory, as what exists does. Raises InvalidArgument."""
    if not has_node_form(name) or os.path.exists(name):
        return None
    return parse_node(name)


def is_node(name: str) -> bool:
    """Whether this names a place, rather than something else that a verb takes; a bare host does not."""
    return has_node_form(name) or os.path.exists(name) or not set("/:").isdisjoint(name)


def node_address(name: str) -> tuple[str, int]:
    """Host and port where only a node is meant, so that a bare host is one, too. Raises InvalidArgument."""
    if os.path.isdir(name):
        raise InvalidArgument(f"{name}: a directory, not a running node: give HOST:PORT")
    return parse_node(name)


def open_node(name: str, timeout_s: float = REPLY_TIMEOUT_S) -> closing[Node]:
    """The running node at HOST:PORT. `timeout_s`: for it to begin a reply."""
    return closing(Node(*node_address(name), timeout_s))


def open_source(name: str, to_load: bool = False) -> AbstractContextManager[Source]:
    """The source that DIR or HOST:PORT names. `to_load`: a missing directory is created."""
    address = address_of(name)
    return closing(Node(*address)) if address else closing(Directory(require_directory(name, to_load), to_load))


def require_stopped(name: str, hint: str) -> Path:
    """The path of a data directory to be changed. `hint` says what to do about the address of a node.

    Raises InvalidArgument and what `require_directory` raises.
    """
    if address_of(name) is not None:
        raise InvalidArgument(f"{name}: {hint}")
    if not os.path.isdir(name):
        raise NotADataDirectory(f"{name}: there is no such directory")
    return require_directory(name)


@contextmanager
def open_to_change(path: Path) -> Iterator[Engine]:
    """The engine of a data directory that no node has open; it makes checkpoints when told to. Raises NodeRuns."""
    from merklekv.engine.engine import Engine

    try:
        engine = Engine(path, durability="never", checkpoint="manual")
    except DirectoryLocked as error:
        raise NodeRuns(str(error)) from error
    with closing(engine):
        yield engine


def require_directory(name: str, may_be_new: bool = False) -> Path:
    """The path of a data directory; creates nothing. Raises NotADataDirectory, FormatTooNew, FileError."""
    path = Path(name)
    if may_be_new and ":" in name and os.sep not in name and not os.path.exists(name):
        raise InvalidArgument(f"{name}: not HOST:PORT; a new directory that is called so is ./{name}")
    if os.path.isdir(path):  # unlike Path.is_dir it does not raise for a name that is too long
        try:
            require_format(path, may_be_new)
        except NotADataDirectory as error:
            raise error if may_be_new else NotADataDirectory(str(error).partition("; ")[0]) from error
        except OSError as error:
            hint = "; run this as the user who owns it" if isinstance(error, PermissionError) else ""
            raise FileError(f"{name}: cannot be read: {error.strerror}{hint}") from error
    elif not may_be_new or os.path.exists(path):
        from merklekv_tool.formats.backup import is_archive

        hint = "; a backup in one file has to be restored first" if is_archive(name) and os.path.exists(path) else ""
        raise NotADataDirectory(f"{name}: neither a data directory nor HOST:PORT{hint}")
    return path
