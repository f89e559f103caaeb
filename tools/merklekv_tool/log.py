"""`merklekv-tool log`: what happened on a node, in the order in which it happened there, from its commit log.

The log holds each write since the oldest segment that is still needed: for merging into the base, or for publishing. It
is the history of one node, with what came from others among it. Reading it changes nothing, and a directory may be read
while a node has it open.

An entry's time is that of its version: when it was written, by the clock of the node where it was written.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import counted, printable
from merklekv_tool.output import PlaceName, moment, note, say, say_json, text_of

if TYPE_CHECKING:
    from merklekv.engine.verify.reference import Entry
    from merklekv_tool.segments import Event, LogReader, Source

EXAMPLES: Final = """
Examples:

    merklekv-tool log ./data --last 20
    merklekv-tool log 127.0.0.1:7379 --follow --prefix user:
    merklekv-tool log ./data --key user:1 --values
    merklekv-tool log ./data --origin node-2 --since 15m --json | jq -r .key
    merklekv-tool log ./data --op truncate --op del --since 2026-01-31T08:00 --until 2026-01-31T09:00

Reads safely beside a running node. Ctrl-C ends --follow, with exit status 0.
"""
OPS: Final = ("set", "del", "incr", "decr", "append", "prepend", "truncate", "origin", "note", "collect", "repair")
LOCAL: Final = "local"  # the origin of what was written here
POLL_S: Final = 0.2
KEY_WIDTH: Final = 32
SHOWN_VALUE_SIZE: Final = 60
HEADER: Final = f"{'time':26}  {'op':8}  {'origin':16}  {'key':{KEY_WIDTH}}  value"

_AGO: Final = re.compile(r"(\d+)\s*([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Filter(NamedTuple):
    """Which entries are wanted; what is None or empty does not matter."""

    key: bytes | None
    prefix: bytes
    origin: str
    ops: frozenset[str]
    since_ns: int
    until_ns: int | None

    def wants(self, event: Event) -> bool:
        entry = event.entry
        if self.ops and name_of(entry.op) not in self.ops:
            return False
        if self.origin and self.origin != (event.origin or LOCAL):
            return False
        if not entry.key.startswith(self.prefix) or (self.key is not None and entry.key != self.key):
            return False
        time_ns = time_of(event)
        if time_ns is None:
            return not self.since_ns and self.until_ns is None
        return self.since_ns <= time_ns and (self.until_ns is None or time_ns < self.until_ns)


def log(
    place: PlaceName,
    key: Annotated[str | None, typer.Option("--key", help="Only this key.", show_default=False)] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Only keys that begin so.", show_default=False)] = "",
    origin: Annotated[
        str, typer.Option("--origin", metavar="NODE", help=f"Only what came from this node; {LOCAL}: written here.")
    ] = "",
    op: Annotated[
        list[str] | None, typer.Option("--op", metavar="OP", help=f"Only these: {', '.join(OPS[:7] + OPS[8:])}.")
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="As 15m (s, m, h, d ago) or 2026-01-31T08:00.")
    ] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Likewise.")] = "",
    last: Annotated[int, typer.Option("--last", min=0, metavar="N", help="Only the last N of them; 0 for all.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    values: Annotated[bool, typer.Option("--values", help="Values too, not only their sizes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line instead of a table.")] = False,
) -> None:
    """Read a node's commit log, filtered, and follow it."""
    from merklekv_tool import places, segments

    now_ns = time.time_ns()
    wanted = Filter(
        None if key is None else os.fsencode(key),
        os.fsencode(prefix),
        origin,
        frozenset(checked_ops(op or [])),
        nanoseconds(since, now_ns) if since else 0,
        nanoseconds(until, now_ns) if until else None,
    )
    show = Shown(values, as_json)
    if places.address_of(place) is None:
        read(segments.DirectoryLog(places.require_directory(place)), wanted, last, follow, show)
        return
    with places.node_at(place) as node:
        read(segments.NodeLog(node), wanted, last, follow, show)


def checked_ops(names: list[str]) -> list[str]:
    """The names. Raises InvalidArgument for one that is none."""
    for name in names:
        if name not in OPS or name == "origin":
            raise InvalidArgument(f"--op {name}: there is only {', '.join(OPS[:7] + OPS[8:])}")
    return names


def nanoseconds(text: str, now_ns: int) -> int:
    """A time, absolute or so long ago. Without a zone it is this machine's. Raises InvalidArgument."""
    ago = _AGO.fullmatch(text.strip())
    if ago:
        return now_ns - int(ago[1]) * _SECONDS[ago[2]] * 10**9
    try:
        return int(datetime.fromisoformat(text.strip()).timestamp() * 10**6) * 1000
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(
            f"{text}: not a time: give 15m (or s, h, d) for so long ago, or 2026-01-31T08:00"
        ) from error


def read(source: Source, wanted: Filter, last: int, follow: bool, show: Shown) -> None:
    """Shows what is there and wanted, and what comes."""
    from merklekv_tool.segments import LogReader

    reader = LogReader(source)
    try:
        there = filter(wanted.wants, until_now(reader, source.name))
        for event in deque(there, last) if last else there:
            show.event(event)
        if reader.unread() and not follow:
            note(f"{source.name}: behind the last whole entry something is being written, torn or damaged")
        while follow:
            time.sleep(POLL_S)
            for event in filter(wanted.wants, until_now(reader, source.name)):
                show.event(event)
    except KeyboardInterrupt:
        if not follow:  # else it is the way to end it
            raise
    if reader.skipped:
        note(f"{source.name}: {counted(reader.skipped, 'byte')} of the log deleted before they could be read")


class Shown:
    """Entries as lines: of a table, or JSON objects."""

    def __init__(self, values: bool, as_json: bool) -> None:
        self._values = values
        self._as_json = as_json
        self._headed = as_json

    def event(self, event: Event) -> None:
        if not self._headed:
            say(HEADER)
            self._headed = True
        if self._as_json:
            say_json(self._fields(event))
        else:
            say(self._line(event))

    def _line(self, event: Event) -> str:
        entry = event.entry
        time_ns = time_of(event)
        when = "" if time_ns is None else moment(time_ns)
        value = stored_value(entry)
        shown = "" if value is None else text_of(value) if self._values else counted(len(value), "byte")
        if len(shown) > SHOWN_VALUE_SIZE:
            shown = f"{shown[:SHOWN_VALUE_SIZE]}... ({counted(len(value or b''), 'byte')})"
        key = text_of(entry.key)
        origin = printable(event.origin or LOCAL)
        return f"{when:26}  {name_of(entry.op):8}  {origin:16}  {key:{KEY_WIDTH}}  {shown}".rstrip()

    def _fields(self, event: Event) -> dict[str, object]:
        from merklekv.engine.record import show_version
        from merklekv_tool.jsonl import field

        entry = event.entry
        fields: dict[str, object] = {"lsn": event.lsn, "sequence": event.sequence, "origin": event.origin}
        fields |= {"op": name_of(entry.op), "time_ns": time_of(event)}
        if entry.key:
            fields |= field("key", entry.key)
        if fields["time_ns"] is not None:
            fields["version"] = show_version(entry.record)
        value = stored_value(entry)
        if value is not None:
            fields["value_size"] = len(value)
            if self._values:
                fields |= field("value", value)
        return fields


def stored_value(entry: Entry) -> bytes | None:
    """What was stored; None where nothing was."""
    from merklekv.engine.format import OP_DEL, OP_METADATA, OP_PURGE, OP_REPAIR, OP_TRUNCATE
    from merklekv.engine.record import value_of

    if entry.op in (OP_DEL, OP_TRUNCATE, OP_PURGE):
        return None
    return entry.record if entry.op in (OP_METADATA, OP_REPAIR) else value_of(entry.record)


def until_now(reader: LogReader, name: str) -> Iterator[Event]:
    """The entries up to the end of the log as it is now."""
    from merklekv_tool.segments import events

    while (frame := reader.next_frame()) is not None:
        yield from events(frame, name)


def name_of(op: int) -> str:
    return OPS[op - 1] if 0 < op <= len(OPS) else str(op)


def time_of(event: Event) -> int | None:
    """Nanoseconds since the epoch; None where there is no version."""
    from merklekv.engine.format import OP_METADATA, OP_REPAIR

    return None if event.entry.op in (OP_METADATA, OP_REPAIR) else int.from_bytes(event.entry.record[:8], "big")
