"""`merklekv load`: reads a dump back, through the same merge that replication uses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from merklekv.errors import DiskFull, InvalidArgument
from merklekv.output import counted
from merklekv_tool.arguments import AsJson, SourceName
from merklekv_tool.errors import DumpError
from merklekv_tool.exit_codes import EXIT_REFUSED
from merklekv_tool.files import open_input
from merklekv_tool.output import Update, note, progress, say, say_json, text_of

if TYPE_CHECKING:
    from merklekv_tool.formats.dump import Reader
    from merklekv_tool.source.source import Pair, Source

EXAMPLES: Final = """
Examples:

    merklekv load data.jsonl ./data
    merklekv load data.cbor 127.0.0.1:7379
    gunzip < data.jsonl.gz | merklekv load - ./data
    merklekv load --anew data.jsonl 127.0.0.1:7379

Versions are kept: of two records of a key the newer one stands, so loading twice, or beside writers, does no harm. Keys
that were deleted since stay deleted. A missing directory is created. Loaded records reach other nodes by anti-entropy,
not as events.

With --anew the values are written as a client would write them now: they replace what is there. Keys expire when they
would have, and those that have expired are left out.
"""
CLOCK: Final = "clock"  # a version too far ahead of the wall clock
STALE: Final = "stable"  # the engine's reason for a record that the cluster has deleted and collected
REFUSED_SHOWN_MAX: Final = 100


class Loader:
    """Merges batches into a source and counts the results."""

    def __init__(self, target: Source, anew: bool) -> None:
        self.applied = self.superseded = self.refused = 0
        self.left_out = 0  # with `anew`: deleted or expired
        self.reasons: list[tuple[bytes, str]] = []  # of the first refused records
        self._target = target
        self._anew = anew

    def load(self, pairs: list[Pair]) -> None:
        if self._anew:
            from merklekv.engine.record import expiry_of, is_expired, is_live, value_of

            now = time.time_ns()
            live = [(key, record) for key, record in pairs if is_live(record) and not is_expired(record, now)]
            self.left_out += len(pairs) - len(live)
            result = self._target.write([(key, value_of(record), expiry_of(record)) for key, record in live])
        else:
            result = self._target.merge(pairs)
        self.applied += result.applied
        self.superseded += result.superseded
        self.refused += len(result.refused)
        self.reasons += result.refused[: REFUSED_SHOWN_MAX - len(self.reasons)]


def load(
    dump_file: Annotated[str, typer.Argument(metavar="FILE", help="A dump in either format; - for stdin.")],
    target: SourceName,
    anew: Annotated[
        bool, typer.Option("--anew", help="Write the values as new, also over what is newer there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read a dump back, keeping versions; the newer record of each key stands."""
    from merklekv_tool.formats.dump import Reader
    from merklekv_tool.formats.jsonl import field
    from merklekv_tool.source.open import open_source

    began = time.monotonic()
    with open_input(dump_file) as (file, size):
        reader = Reader(file, dump_file)
        with open_source(target, to_load=True) as records, progress(f"load {records.name}", of_bytes=True) as update:
            loader = Loader(records, anew)
            try:
                _load_all(reader, loader, file, size, update)
                if reader.truncation is not None and not anew:
                    records.merge_truncation(reader.truncation)
            except (DumpError, DiskFull, InvalidArgument) as error:
                place = {DiskFull: f"{records.name}: ", InvalidArgument: f"{dump_file}: "}.get(type(error), "")
                applied = counted(loader.applied, "record")
                raise type(error)(f"{place}{error}; taken in before that: {applied}") from error
    if as_json:
        say_json(
            {
                "target": records.name,
                "records": reader.records,
                "applied": loader.applied,
                "superseded": loader.superseded,
                "left_out": loader.left_out,
                "refused": loader.refused,
                "reasons": [field("key", key) | {"reason": reason} for key, reason in loader.reasons],
                "seconds": round(time.monotonic() - began, 3),
            }
        )
    else:
        _show(loader, reader.records, anew)
    if loader.refused:
        raise typer.Exit(EXIT_REFUSED)


def _load_all(reader: Reader, loader: Loader, file: BinaryIO, size: int, update: Update) -> None:
    from merklekv_tool.source.source import PAGE_BYTES, PAGE_RECORDS

    batch: list[Pair] = []
    batch_bytes = 0
    try:
        for key, record in reader:
            batch.append((key, record))
            batch_bytes += len(key) + len(record)
            if len(batch) == PAGE_RECORDS or batch_bytes >= PAGE_BYTES:
                loader.load(batch)
                update(file.tell() if size else 0, size)
                batch, batch_bytes = [], 0
    finally:
        loader.load(batch)  # also before an error of the dump is reported


def _show(loader: Loader, records: int, anew: bool) -> None:
    for key, reason in loader.reasons:
        note(f"refused {text_of(key)}: {reason}")
    if loader.refused > len(loader.reasons):
        note(f"refused {loader.refused - len(loader.reasons)} more")
    if any(reason == STALE for _, reason in loader.reasons):
        note(f"{STALE}: the cluster has deleted and collected the record since; --anew writes it again")
    if any(reason == CLOCK for _, reason in loader.reasons):
        note(f"{CLOCK}: a wrong clock stamped the record in the future, or the one here is slow; --anew stamps it now")
    rest = records - loader.applied - loader.refused
    left = "of deleted or expired keys left out" if anew else "not newer than what is there"
    say(
        f"{counted(records, 'record')} read: {loader.applied} {'written anew' if anew else 'taken in'}, "
        f"{rest} {left}, {loader.refused} refused"
    )
