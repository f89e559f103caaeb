"""`merklekv-tool backup`: all that a node or a directory holds at one moment, checked, to a directory or one file.

It is hot: the node goes on serving and writing. It is exact: the data of one moment after the command began, with
everything that was acknowledged before, the tombstones, and what the node knows of its cluster (snapshots.py says how).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from merklekv.output import counted
from merklekv_tool.output import AsJson, PlaceName, progress, say, say_json
from merklekv_tool.statuses import FileError

EXAMPLES: Final = """
Examples:

    merklekv-tool backup ./data ./backup-monday
    merklekv-tool backup ./data monday.tar.gz
    merklekv-tool backup 10.0.0.5:7379 node-5.tar.gz
    merklekv-tool backup /var/lib/merklekv "/backups/$(date +%F).tar.gz" --json >> /backups/log.jsonl

A directory may be backed up while a node has it open, which is faster than through the node's port. There has to be
room beside the backup for its data, uncompressed. What is there already is never overwritten.
"""


def backup(
    source: PlaceName,
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="A new directory; a new file when it ends in .tar.gz or .tgz.")
    ],
    as_json: AsJson = False,
) -> None:
    """Back up a node or a directory, while it runs, to a directory or a compressed file."""
    from merklekv_tool import backups, places, snapshots

    target = Path(destination)
    backups.require_name(destination, source)
    backups.require_absent(target)
    if not target.absolute().parent.is_dir():
        raise FileError(f"{target.absolute().parent}: no such directory, make it first")
    began = time.monotonic()
    with backups.files_of(destination), backups.drafted(target) as draft:
        if places.address_of(source) is None:
            with progress(f"copy {source}", of_bytes=True) as update:
                snapshots.of_directory(places.require_directory(source), draft, update)
        else:
            with places.node_at(source) as node, progress(f"copy {source}") as update:
                snapshots.of_node(node, draft, update)
        with progress("check the copy", of_bytes=True) as update:
            description = backups.describe(draft, source, backups.settle(draft, update))
        if backups.is_archive(destination):
            with progress(f"write {target.name}", of_bytes=True) as update:
                backups.pack(draft, draft / "packed", target, update)
            size = target.stat().st_size
        else:
            backups.publish(draft, target)
            size = backups.size_of(target)
    if as_json:
        seconds = round(time.monotonic() - began, 3)
        say_json({"backup": destination, **description, "bytes": size, "seconds": seconds})
    else:
        say(f"{destination}: {backups.contents(description)}, {counted(size, 'byte')}, root {description['root']}")
