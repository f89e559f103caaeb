"""`merklekv-tool dump`: everything that a place holds, as one stream."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated, Final, Literal

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import counted
from merklekv_tool.output import STDIO, AsJson, PlaceName, note, progress, say_json, written

EXAMPLES: Final = """
Examples:

    merklekv-tool dump ./data > data.jsonl
    merklekv-tool dump 127.0.0.1:7379 --format cbor --output data.cbor
    merklekv-tool dump ./data --prefix user: | jq -r '.key // empty'
    merklekv-tool dump 127.0.0.1:7379 | gzip > data.jsonl.gz

A directory is dumped as it stands. A node may be written to meanwhile: then each record is as it was when the dump came
to it. Nodes that hold the same give the same bytes.
"""


def dump(
    place: PlaceName,
    form: Annotated[
        Literal["jsonl", "cbor"],
        typer.Option("--format", metavar="jsonl|cbor", help="JSON lines, or CBOR: smaller and faster."),
    ] = "jsonl",
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to; - for stdout.")] = STDIO,
    prefix: Annotated[str, typer.Option("--prefix", help="Only keys that begin so.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Write out keys, values, versions, deleted keys and the floor."""
    from merklekv_tool import dumps, places

    if form == "cbor" and output == STDIO and sys.stdout.isatty():
        raise InvalidArgument("CBOR is not for a terminal: give --output FILE, or pipe it somewhere")
    began = time.monotonic()
    with (
        places.opened(place) as there,
        written(output) as file,
        progress(f"dump {there.name}", prints=output == STDIO) as update,
    ):
        start = os.fsencode(prefix)
        writer = dumps.Writer(file, dumps.format_named(form), start)
        total = 0 if prefix else there.count()
        for page in there.pages(start):
            writer.page(page)
            update(writer.records, total)
        writer.end(None if prefix else there.truncation())
    summary = {
        "place": there.name,
        "records": writer.records,
        "tombstones": writer.tombstones,
        "bytes": writer.size,
        "seconds": round(time.monotonic() - began, 3),
    }
    if as_json:
        say_json(summary, to_stderr=output == STDIO)
    else:
        deleted = f"{writer.tombstones:,} of them deleted"
        note(f"{counted(writer.records, 'record')}, {deleted}, {counted(writer.size, 'byte')}")
