"""`merklekv restore`: makes a data directory of a backup. It is checked before it appears.

The node that starts on it draws a new process epoch, as at each start, so it creates no version twice. It treats its
whole log as published.
It keeps the backup's member table and GC horizon. In its first exchanges it learns what it has missed: records that the
cluster has deleted and collected since are deleted here too, not brought back.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from merklekv_tool.arguments import AsJson
from merklekv_tool.errors import FileError
from merklekv_tool.output import note, progress, say_result
from merklekv_tool.verbs.verify import metadata_violations

EXAMPLES: Final = """
Examples:

    merklekv restore ./backup-monday ./data
    merklekv restore monday.tar.gz /var/lib/merklekv && systemctl start merklekv
    merklekv restore monday.tar.gz ./data-of-another-node --new-node-id

Nothing is overwritten: the directory must be missing or empty. Never run a restored node beside the backed-up one,
unless it has a node id of its own.
"""


def restore(
    backup: Annotated[str, typer.Argument(metavar="BACKUP", help="A backup, directory or compressed file.")],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The data directory to make.")],
    new_node_id: Annotated[
        bool, typer.Option("--new-node-id", help="Leave the node id out: the node will give itself another one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a data directory of a backup; it catches up with its cluster by exchange."""
    from merklekv.node_id import NODE_ID_FILE, read_node_id
    from merklekv_tool.formats import backup as backups

    source, target = Path(backup), Path(directory)
    if not source.exists():
        raise FileError(f"{backup}: no such file or directory")
    began = time.monotonic()
    with backups.path_errors(directory):
        backups.require_absent(target, empty=True)
        backups.require_movable(target)
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with backups.drafted(target, backup) as draft:
            with progress(f"copy {source.name}", of_bytes=True) as update:
                description = backups.unpack(source, draft, update)
            with progress("check the copy", of_bytes=True) as update:
                metadata = backups.examine(draft, description, backup, update)
            if new_node_id:
                (draft / NODE_ID_FILE).unlink(missing_ok=True)
            read_node_id(draft)
            backups.publish(draft, target)
    for problem in metadata_violations(metadata):
        note(f"{directory}: {problem}; all records are there")
    seconds = round(time.monotonic() - began, 3)
    say_result(
        {"directory": directory, "backup": backup, **description, "seconds": seconds},
        f"{directory}: {backups.contents(description)}, as {description['source']} had them at {description['made']}",
        as_json,
    )
