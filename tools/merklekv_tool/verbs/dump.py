"""`merklekv dump`: writes every record of a source as one stream."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated, Final, Literal

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import counted, is_terminal
from merklekv_tool.arguments import AsJson, Prefix, SourceName
from merklekv_tool.files import STDIO, open_output
from merklekv_tool.output import note, progress, say_json

EXAMPLES: Final = """
Examples:

    merklekv dump ./data > data.jsonl
    merklekv dump 127.0.0.1:7379 --format cbor --output data.cbor
    merklekv dump ./data --prefix user: | jq -r '.key // empty'
    merklekv dump 127.0.0.1:7379 | gzip > data.jsonl.gz

A dump of a directory has the data of one moment. A node may be written to meanwhile: then each record is as it was when
the dump read it. Nodes that hold the same give the same bytes.
"""


def dump(
    source: SourceName,
    form: Annotated[
        Literal["jsonl", "cbor"],
        typer.Option("--format", metavar="jsonl|cbor", help="JSON lines, or CBOR: smaller and faster."),
    ] = "jsonl",
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to; - for stdout.")] = STDIO,
    prefix: Prefix = "",
    as_json: AsJson = False,
) -> None:
    """Write out keys, values, versions, deleted keys and the truncation version."""
    from merklekv_tool.formats.dump import Writer
    from merklekv_tool.source.open import open_source

    if form == "cbor" and output == STDIO and is_terminal(sys.stdout):
        raise InvalidArgument("CBOR is not for a terminal: give --output FILE, or pipe it somewhere")
    began = time.monotonic()
    with (
        open_source(source) as records,
        open_output(output) as file,
        progress(f"dump {records.name}", prints=output == STDIO) as update,
    ):
        start = os.fsencode(prefix)
        writer = Writer(file, form, start)
        total = 0 if prefix else records.count()
        for page in records.pages(start):
            writer.page(page)
            update(writer.records, total)
        writer.end(None if prefix else records.truncation())
    summary = {
        "source": records.name,
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
