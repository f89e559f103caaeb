"""`merklekv backup`: copies all data of a node or a directory at one moment to a directory or one file.

The node goes on serving and writing meanwhile. The copy has the data of one moment after the command began, with every
write acknowledged before, the tombstones, and the node's metadata; see `snapshot`. It is checked before it appears.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from merklekv.output import counted
from merklekv_tool.arguments import AsJson, SourceName
from merklekv_tool.errors import FileError
from merklekv_tool.output import progress, say_result

EXAMPLES: Final = """
Examples:

    merklekv backup ./data ./backup-monday
    merklekv backup ./data monday.tar.gz
    merklekv backup 10.0.0.5:7379 node-5.tar.gz
    merklekv backup /var/lib/merklekv "/backups/$(date +%F).tar.gz" --json >> /backups/log.jsonl

A directory may be backed up while a node has it open, which is faster than through the node's port. The backup needs
room beside it for its data, uncompressed. Nothing is ever overwritten.
"""


def backup(
    source: SourceName,
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="A new directory; a new file when it ends in .tar.gz or .tgz.")
    ],
    as_json: AsJson = False,
) -> None:
    """Back up a node or a directory, while it runs, to a directory or a compressed file."""
    from merklekv_tool.formats import backup as backups
    from merklekv_tool.snapshot.directory import copy_directory
    from merklekv_tool.snapshot.node import copy_node
    from merklekv_tool.source.open import address_of, open_node, require_directory

    target = Path(destination)
    backups.require_name(destination, source)
    backups.require_absent(target)
    if not target.absolute().parent.is_dir():
        raise FileError(f"{target.absolute().parent}: no such directory, make it first")
    began = time.monotonic()
    with backups.path_errors(destination), backups.drafted(target, source) as draft:
        if address_of(source) is None:
            with progress(f"copy {source}", of_bytes=True) as update:
                copy_directory(require_directory(source), draft, update)
        else:
            with open_node(source) as node, progress(f"copy {source}") as update:
                copy_node(node, draft, update)
        with progress("check the copy", of_bytes=True) as update:
            description = backups.describe(draft, source, backups.complete(draft, update))
        if backups.is_archive(destination):
            with progress(f"write {target.name}", of_bytes=True) as update:
                backups.pack(draft, draft / "packed", target, update)
            size = target.stat().st_size
        else:
            backups.publish(draft, target)
            size = backups.size_of(target)
    seconds = round(time.monotonic() - began, 3)
    say_result(
        {"backup": destination, **description, "bytes": size, "seconds": seconds},
        f"{destination}: {backups.contents(description)}, {counted(size, 'byte')}, root {description['root']}",
        as_json,
    )
