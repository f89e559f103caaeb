"""`merklekv watch`: every change on a running node, as it happens.

It follows the change feed (docs/protocol.md, CHANGES): writes of this node and of others, each once and in the order of
the node's log. When the node restarts, it goes on where it was.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from merklekv_tool.arguments import DEFAULT_NODE, AsJsonLines, NodeName, Prefix
from merklekv_tool.errors import FileError
from merklekv_tool.files import output_errors, replaceable
from merklekv_tool.output import note, say, say_json, time_text
from merklekv_tool.verbs.log import HEADER, row

if TYPE_CHECKING:
    from merklekv_tool.source.node import NodeChange

EXAMPLES: Final = """
Examples:

    merklekv watch
    merklekv watch 127.0.0.1:7379 --prefix user: --values
    merklekv watch --from '' --once
    merklekv watch --json --cursor-file ./seen | while read -r change; do ...; done

Some lines of --json have a `cursor`: with --from it goes on behind that line. Ctrl-C ends it, with exit status 0, and
names the cursor. When the node restarts, it goes on.
"""
END: Final = b"$"
WAIT_MS: Final = 20_000  # of one request; below the time after which a node that says nothing is given up
RETRY_S: Final = 0.5
CURSOR_FILE_SIZE_MAX: Final = 200


def watch(
    node: NodeName = DEFAULT_NODE,
    prefix: Prefix = "",
    begin: Annotated[
        str,
        typer.Option("--from", metavar="CURSOR", help="Where to begin: '' is the oldest change there is, $ the end."),
    ] = END.decode(),
    cursor_file: Annotated[
        Path | None,
        typer.Option("--cursor-file", metavar="FILE", help="Keeps the cursor here, and goes on from it."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Ends where it would wait for the next change.")] = False,
    values: Annotated[bool, typer.Option("--values", help="Values too, not only their sizes.")] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Follow the changes of a running node."""
    if cursor_file is not None:
        place = replaceable(cursor_file)
        if place is None:  # /dev/null would become a file
            raise FileError(f"{cursor_file}: no regular file: give another one to keep the cursor in")
        cursor_file = place
    stored = _read_cursor(cursor_file) if cursor_file is not None else None
    watcher = Watcher(os.fsencode(begin) if stored is None else stored, os.fsencode(prefix), values, as_json)
    watcher.keeps_cursor_in = cursor_file
    try:
        watcher.follow(node, once)
    except KeyboardInterrupt:
        if once:
            raise
        if watcher.cursor not in (b"", END):
            note(f"to go on: --from {watcher.cursor.decode(errors='replace')}")


class Watcher:
    """Prints changes from a cursor on."""

    def __init__(self, cursor: bytes, prefix: bytes, values: bool, as_json: bool) -> None:
        self.cursor = cursor
        self.keeps_cursor_in: Path | None = None
        self._prefix = prefix
        self._values = values
        self._as_json = as_json
        self._needs_header = not as_json

    def follow(self, name: str, once: bool) -> None:
        """Prints what is there and what comes; `once`: only what is there. Connects again when the node is gone."""
        from merklekv.net.client import Unreachable
        from merklekv_tool.source.open import open_node

        was_reached = False
        while True:
            try:
                with open_node(name) as node:
                    if was_reached:
                        note(f"{name}: reached again")
                    while True:
                        cursor, changes = node.changes(self.cursor, self._prefix, 0 if once else WAIT_MS)
                        was_reached = True
                        self._print(changes, cursor)
                        is_end = once and cursor == self.cursor
                        self._advance(cursor)
                        if is_end:
                            return
            except Unreachable as error:
                if once or not was_reached:
                    raise
                note(f"{error}; trying again")
            self._wait_for(name)

    def _wait_for(self, name: str) -> None:
        from merklekv.net.client import NodeError, Unreachable
        from merklekv_tool.source.open import open_node

        while True:
            time.sleep(RETRY_S)
            try:
                open_node(name).__exit__(None, None, None)
                return
            except (Unreachable, NodeError):  # others may have come first, and it takes no more clients
                continue

    def _advance(self, cursor: bytes) -> None:
        from merklekv.files import replace_file

        is_new, self.cursor = cursor != self.cursor, cursor
        if is_new and self.keeps_cursor_in is not None:
            with output_errors(str(self.keeps_cursor_in)):
                replace_file(self.keeps_cursor_in, cursor + b"\n", durable=False)

    def _print(self, changes: list[NodeChange], cursor: bytes) -> None:
        for change in changes:
            if self._as_json:
                say_json(self._fields(change) | ({"cursor": cursor.decode()} if change is changes[-1] else {}))
                continue
            if self._needs_header:
                say(HEADER)
                self._needs_header = False
            line = row(change.time_ns, change.op, change.origin, change.key or b"", change.value, self._values)
            say(line if change.expiry_ms is None else f"{line}, expires {time_text(change.expiry_ms * 10**6)}")

    def _fields(self, change: NodeChange) -> dict[str, object]:
        from merklekv_tool.formats.jsonl import field

        fields: dict[str, object] = {"op": change.op, "origin": change.origin, "version": change.version}
        if change.key is not None:
            fields |= field("key", change.key)
        if change.expiry_ms is not None:
            fields["expiry_ms"] = change.expiry_ms
        if change.value is not None:
            fields["value_size"] = len(change.value)
            if self._values:
                fields |= field("value", change.value)
        return fields


def _read_cursor(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(CURSOR_FILE_SIZE_MAX).strip()
    except FileNotFoundError:
        return None
