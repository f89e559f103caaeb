"""`merklekv log`: what happened on a node, in the order in which it happened there, from its commit log.

The log holds every write since the oldest segment that the node still needs for a checkpoint or for publishing. It is
the history of one node, writes from other nodes included. Reading changes nothing, and a directory may be read while a
node has it open.

The time of an entry is that of its version: when it was written, by the clock of the node that wrote it.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from merklekv.errors import InvalidArgument, shown
from merklekv.output import counted, printable
from merklekv_tool.arguments import DEFAULT_NODE, AsJsonLines, Prefix, SourceName
from merklekv_tool.output import TIME_WIDTH, note, say, say_json, text_of, time_text

if TYPE_CHECKING:
    from merklekv.engine.log.reader import LogSource
    from merklekv_tool.source.log import Event

EXAMPLES: Final = """
Examples:

    merklekv log ./data --last 20
    merklekv log 127.0.0.1:7379 --follow --prefix user:
    merklekv log ./data --key user:1 --values
    merklekv log ./data --origin node-2 --since 15m --json | jq -r .key
    merklekv log ./data --op truncate --op del --since 2026-01-31T08:00 --until 2026-01-31T09:00

`purge` is a tombstone that was collected; `metadata` and `repair` are what the node stores for itself.

Reads safely beside a running node. Ctrl-C ends --follow, with exit status 0.
"""
# `Event` has no origins, which only say where the next entries come from.
# Written out, because `--help` is not to wait for the engine's modules; a test compares.
OPERATIONS: Final = (
    dict(enumerate(("set", "del", "incr", "decr", "append", "prepend", "truncate"), 1))
    | {9: "metadata", 10: "purge", 11: "repair"}
    | dict(
        enumerate(
            (
                "expire",
                "persist",
                "setrange",
                "setbit",
                "incrbyfloat",
                "rename_from",
                "rename_to",
                "copy_to",
                "restore",
            ),
            16,
        )
    )
)
OP_WIDTH: Final = max(map(len, OPERATIONS.values()))
LOCAL: Final = "local"  # the origin of the node's own writes
POLL_S: Final = 0.2
LAST_MAX: Final = 1_000_000_000
KEY_WIDTH: Final = 32
SHOWN_VALUE_SIZE: Final = 60
HEADER: Final = f"{'time':{TIME_WIDTH}}  {'op':{OP_WIDTH}}  {'origin':16}  {'key':{KEY_WIDTH}}  value"

NS_PER_MS: Final = 10**6

_AGO: Final = re.compile(r"(\d+)\s*([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Filter(NamedTuple):
    """The entries to show; a field that is None or empty selects all."""

    key: bytes | None
    prefix: bytes
    origin: str
    operations: frozenset[str]
    since_ns: int
    until_ns: int | None

    def selects(self, event: Event) -> bool:
        if self.operations and _operation(event) not in self.operations:
            return False
        if not self.operations and event.is_beside_deletion:
            return False
        if self.origin and self.origin != (event.origin or LOCAL):
            return False
        key = event.entry.key
        if not key.startswith(self.prefix) or (self.key is not None and key != self.key):
            return False
        time_ns = event.time_ns
        if time_ns is None:
            return not self.since_ns and self.until_ns is None
        return self.since_ns <= time_ns and (self.until_ns is None or time_ns < self.until_ns)


def log(
    source: SourceName = DEFAULT_NODE,
    key: Annotated[str | None, typer.Option("--key", help="Only this key.", show_default=False)] = None,
    prefix: Prefix = "",
    origin: Annotated[
        str, typer.Option("--origin", metavar="NODE", help=f"Only writes of this node; {LOCAL}: its own.")
    ] = "",
    op: Annotated[
        list[str] | None,
        typer.Option(
            "--op",
            metavar="OP",
            help=f"Only these: {', '.join(OPERATIONS.values())}.",
            autocompletion=lambda: [*OPERATIONS.values()],
        ),
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="As 15m (s, m, h, d ago) or 2026-01-31T08:00.")
    ] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Likewise.")] = "",
    last: Annotated[
        int, typer.Option("--last", min=0, max=LAST_MAX, metavar="N", help="Only the last N of them; 0 for all.")
    ] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    values: Annotated[bool, typer.Option("--values", help="Values too, not only their sizes.")] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Read a node's commit log, filtered, and follow it."""
    from merklekv_tool.source.log import DirectoryLog
    from merklekv_tool.source.open import address_of, open_node, require_directory

    for name in op or []:
        if name not in OPERATIONS.values():
            raise InvalidArgument(f"--op {name}: there is only {', '.join(OPERATIONS.values())}")
    now_ns = time.time_ns()
    selected = Filter(
        None if key is None else os.fsencode(key),
        os.fsencode(prefix),
        origin,
        frozenset(op or []),
        nanoseconds(since, now_ns) if since else 0,
        nanoseconds(until, now_ns) if until else None,
    )
    printer = Printer(values, as_json)
    if address_of(source) is None:
        _read(DirectoryLog(require_directory(source)), selected, last, follow, printer)
    else:
        with open_node(source) as node:
            _read(node, selected, last, follow, printer)


def nanoseconds(text: str, now_ns: int) -> int:
    """A time, absolute or as a duration ago. Without a zone it is in this machine's. Raises InvalidArgument."""
    try:
        if ago := _AGO.fullmatch(text.strip()):
            return now_ns - int(ago[1]) * _SECONDS[ago[2]] * 10**9
        return int(datetime.fromisoformat(text.strip()).timestamp() * 10**6) * 1000
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{shown(text)}: not a time: give 15m (or s, h, d) ago, or 2026-01-31T08:00") from error


def _read(source: LogSource, selected: Filter, last: int, follow: bool, printer: Printer) -> None:
    from merklekv_tool.source.log import EventReader

    reader = EventReader(source)
    try:
        events = filter(selected.selects, reader.until_now())
        for event in deque(events, last) if last else events:
            printer.event(event)
        if reader.unread() and not follow:
            note(f"{source.name}: behind the last whole entry something is being written, or torn by a crash")
        while follow:
            time.sleep(POLL_S)
            for event in filter(selected.selects, reader.until_now()):
                printer.event(event)
    except KeyboardInterrupt:
        if not follow:  # with --follow it is the way to end
            raise
    if reader.skipped:
        note(f"{source.name}: {counted(reader.skipped, 'byte')} of the log deleted before they could be read")


def _operation(event: Event) -> str:
    return OPERATIONS.get(event.entry.op, str(event.entry.op))


def row(time_ns: int | None, operation: str, origin: str, key: bytes, value: bytes | None, values: bool) -> str:
    """A line of the table under HEADER. `values`: with the value, not only its size."""
    when = "" if time_ns is None else time_text(time_ns)
    shown = "" if value is None else text_of(value) if values else counted(len(value), "byte")
    if len(shown) > SHOWN_VALUE_SIZE:
        shown = f"{shown[:SHOWN_VALUE_SIZE]}... ({counted(len(value or b''), 'byte')})"
    begin = f"{when:{TIME_WIDTH}}  {operation:{OP_WIDTH}}  {printable(origin):16}"
    return f"{begin}  {text_of(key):{KEY_WIDTH}}  {shown}".rstrip()


class Printer:
    """Prints entries as lines of a table, or as JSON objects."""

    def __init__(self, values: bool, as_json: bool) -> None:
        self._values = values
        self._as_json = as_json
        self._needs_header = not as_json

    def event(self, event: Event) -> None:
        if self._needs_header:
            say(HEADER)
            self._needs_header = False
        if self._as_json:
            say_json(self._fields(event))
        else:
            say(self._line(event))

    def _line(self, event: Event) -> str:
        origin = event.origin or LOCAL
        line = row(event.time_ns, _operation(event), origin, event.entry.key, event.value, self._values)
        return line if event.expiry_ms is None else f"{line}, expires {time_text(event.expiry_ms * NS_PER_MS)}"

    def _fields(self, event: Event) -> dict[str, object]:
        from merklekv.engine.record import show_version
        from merklekv_tool.formats.jsonl import field

        fields: dict[str, object] = {"lsn": event.lsn, "sequence": event.sequence, "origin": event.origin}
        fields |= {"op": _operation(event), "time_ns": event.time_ns}
        if event.entry.key:
            fields |= field("key", event.entry.key)
        if event.version is not None:
            fields["version"] = show_version(event.version)
        if event.expiry_ms is not None:
            fields["expiry_ms"] = event.expiry_ms
        if event.value is not None:
            fields["value_size"] = len(event.value)
            if self._values:
                fields |= field("value", event.value)
        return fields
