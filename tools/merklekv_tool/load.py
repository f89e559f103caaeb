"""`merklekv-tool load`: reads a dump back, through the same merge that replication uses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from merklekv.errors import DiskFull
from merklekv.output import counted
from merklekv_tool.output import AsJson, PlaceName, Update, note, progress, readable, say, say_json, text_of
from merklekv_tool.statuses import EXIT_REFUSED, DumpError

if TYPE_CHECKING:
    from merklekv_tool.dumps import Reader
    from merklekv_tool.places import LogPosition, Pair

EXAMPLES: Final = """
Examples:

    merklekv-tool load data.jsonl ./data
    merklekv-tool load data.cbor 127.0.0.1:7379
    gunzip < data.jsonl.gz | merklekv-tool load - ./data
    merklekv-tool load --anew data.jsonl 127.0.0.1:7379

Versions are kept: a record stands if it is newer than what is there, so loading twice, or beside writers, is harmless.
What was deleted since stays so. A directory that is missing is made. What was loaded reaches other nodes by
anti-entropy, not as events.

With --anew the values are written as a client would write them now: they stand, whatever was there.
"""
SETTLED: Final = "settled"  # the engine's word for what is refused since the cluster knows better
REFUSED_SHOWN_MAX: Final = 100


class Loader:
    """Merges batches into a place and counts what became of them."""

    def __init__(self, there: LogPosition, anew: bool) -> None:
        self.applied = self.superseded = self.refused = 0
        self.reasons: list[tuple[bytes, str]] = []  # the first of the refused
        self._there = there
        self._anew = anew

    def load(self, pairs: list[Pair]) -> None:
        if self._anew:
            from merklekv.engine.record import is_live, value_of

            live = [(key, value_of(record)) for key, record in pairs if is_live(record)]
            result = self._there.write(live)
        else:
            result = self._there.merge(pairs)
        self.applied += result.applied
        self.superseded += result.superseded
        self.refused += len(result.refused)
        self.reasons += result.refused[: REFUSED_SHOWN_MAX - len(self.reasons)]

    def taken_in(self) -> str:
        """What stays of a load that fails, in words."""
        return f"taken in before that: {counted(self.applied, 'record')}"


def load(
    dump_file: Annotated[str, typer.Argument(metavar="FILE", help="A dump in either format; - for stdin.")],
    place: PlaceName,
    anew: Annotated[
        bool, typer.Option("--anew", help="Write the values as new, also over what is newer there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read a dump back, keeping versions; the newer record of each key stands."""
    from merklekv_tool import dumps, places
    from merklekv_tool.jsonl import field

    began = time.monotonic()
    with readable(dump_file) as (file, size):
        reader = dumps.Reader(file, dump_file)
        with places.opened(place, to_load=True) as there, progress(f"load {there.name}", of_bytes=True) as update:
            loader = Loader(there, anew)
            try:
                read(reader, loader, file, size, update)
                if reader.truncation is not None and not anew:
                    there.merge_truncation(reader.truncation)
            except DumpError as error:
                raise DumpError(f"{error}; {loader.taken_in()}") from error
            except DiskFull as error:
                raise DiskFull(f"{there.name}: {error}; {loader.taken_in()}") from error
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
        show(loader, reader.records, anew)
    if loader.refused:
        raise typer.Exit(EXIT_REFUSED)


def read(reader: Reader, loader: Loader, file: BinaryIO, size: int, update: Update) -> None:
    """Loads all records of a dump."""
    from merklekv_tool.places import PAGE_BYTES, PAGE_RECORDS

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
        loader.load(batch)  # also before the complaint about what follows


def show(loader: Loader, records: int, anew: bool) -> None:
    """The result in words."""
    for key, reason in loader.reasons:
        note(f"refused {text_of(key)}: {reason}")
    if loader.refused > len(loader.reasons):
        note(f"refused {loader.refused - len(loader.reasons)} more")
    if any(reason == SETTLED for _, reason in loader.reasons):
        note(f"{SETTLED}: older than what the cluster has settled, so deleted there since; --anew writes it again")
    rest = records - loader.applied - loader.refused
    say(
        f"{counted(records, 'record')} read: {loader.applied} {'written anew' if anew else 'taken in'}, "
        f"{rest} {'of deleted keys left out' if anew else 'not newer than what is there'}, {loader.refused} refused"
    )
