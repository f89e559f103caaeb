"""`merklekv-tool load`: reads a dump back, through the same merge that replication uses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from merklekv.errors import DiskFull
from merklekv_tool.output import AsJson, PlaceName, Update, note, progress, readable, say, say_json, text_of
from merklekv_tool.statuses import EXIT_REFUSED, DumpError

if TYPE_CHECKING:
    from merklekv_tool.dumps import Reader
    from merklekv_tool.places import Pair, Place

EXAMPLES: Final = """
Examples:

    merklekv-tool load data.jsonl ./data
    merklekv-tool load data.cbor 127.0.0.1:7379
    gunzip < data.jsonl.gz | merklekv-tool load - ./data

Versions are kept: a record stands if it is newer than what is there, so loading twice, or beside writers, is harmless.
A directory that is missing is made. What was loaded reaches other nodes by anti-entropy, not as events.
"""
REFUSED_SHOWN_MAX: Final = 100


class Loader:
    """Merges batches into a place and counts what became of them."""

    def __init__(self, there: Place) -> None:
        self.applied = self.superseded = self.refused = 0
        self.reasons: list[tuple[bytes, str]] = []  # the first of the refused
        self._there = there

    def merge(self, pairs: list[Pair]) -> None:
        result = self._there.merge(pairs)
        self.applied += result.applied
        self.superseded += result.superseded
        self.refused += len(result.refused)
        self.reasons += result.refused[: REFUSED_SHOWN_MAX - len(self.reasons)]


def load(
    dump_file: Annotated[str, typer.Argument(metavar="FILE", help="A dump in either format; - for stdin.")],
    place: PlaceName,
    as_json: AsJson = False,
) -> None:
    """Read a dump back, keeping versions; the newer record of each key stands."""
    from merklekv_tool import dumps, places
    from merklekv_tool.jsonl import field

    began = time.monotonic()
    with readable(dump_file) as (file, size):
        reader = dumps.Reader(file, dump_file)
        with places.opened(place, to_load=True) as there, progress(f"load {there.name}", of_bytes=True) as update:
            loader = Loader(there)
            try:
                read(reader, there, loader, file, size, update)
            except DumpError as error:
                raise DumpError(f"{error}; {loader.applied} records before that were taken in") from error
            except DiskFull as error:
                raise DiskFull(f"{there.name}: {error}; {loader.applied} records before it were") from error
    summary: dict[str, object] = {
        "place": there.name,
        "records": reader.records,
        "applied": loader.applied,
        "superseded": loader.superseded,
        "refused": loader.refused,
        "reasons": [field("key", key) | {"reason": reason} for key, reason in loader.reasons],
        "seconds": round(time.monotonic() - began, 3),
    }
    if as_json:
        say_json(summary)
    else:
        show(loader, reader.records)
    if loader.refused:
        raise typer.Exit(EXIT_REFUSED)


def read(reader: Reader, there: Place, loader: Loader, file: BinaryIO, size: int, update: Update) -> None:
    """Merges a whole dump into a place."""
    from merklekv_tool.places import PAGE_BYTES, PAGE_RECORDS

    batch: list[Pair] = []
    batch_bytes = 0
    try:
        for key, record in reader:
            batch.append((key, record))
            batch_bytes += len(key) + len(record)
            if len(batch) == PAGE_RECORDS or batch_bytes >= PAGE_BYTES:
                loader.merge(batch)
                update(file.tell() if size else 0, size)
                batch, batch_bytes = [], 0
    finally:
        loader.merge(batch)  # also before the complaint about what follows
    if reader.floor is not None:
        there.merge_floor(reader.floor)


def show(loader: Loader, records: int) -> None:
    """The result in words."""
    for key, reason in loader.reasons:
        note(f"refused {text_of(key)}: {reason}")
    if loader.refused > len(loader.reasons):
        note(f"refused {loader.refused - len(loader.reasons)} more")
    say(
        f"{records} records read: {loader.applied} taken in, {loader.superseded} not newer than what is there, "
        f"{loader.refused} refused"
    )
