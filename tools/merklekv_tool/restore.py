"""`merklekv-tool restore`: a backup made a data directory again, checked before it appears.

The node that starts on it draws a new instance id for the versions that it makes, so none is ever made twice, and holds
its whole log for published. It keeps the table of members and the horizon of the backup, so it knows what the cluster
was, and finds out in its first exchanges what it has missed: what was deleted and collected since is removed here as
well, not brought back.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from merklekv_tool.output import AsJson, progress, say, say_json
from merklekv_tool.statuses import FileError

EXAMPLES: Final = """
Examples:

    merklekv-tool restore ./backup-monday ./data
    merklekv-tool restore monday.tar.gz /var/lib/merklekv && systemctl start merklekv
    merklekv-tool restore monday.tar.gz ./data-of-another-node --new-node-id

Nothing is overwritten: the directory must be missing or empty. Never run a restored node beside the one that the backup
was made of, unless it has a node id of its own.
"""


def restore(
    backup: Annotated[str, typer.Argument(metavar="BACKUP", help="A backup, directory or compressed file.")],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The data directory to make.")],
    new_node_id: Annotated[
        bool, typer.Option("--new-node-id", help="Leave the node's id out: it will give itself another one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a data directory of a backup; it catches up with its cluster by exchange."""
    from merklekv_tool import backups

    source, target = Path(backup), Path(directory)
    if not source.exists():
        raise FileError(f"{backup}: no such file or directory")
    began = time.monotonic()
    with backups.files_of(directory):
        backups.require_absent(target, empty=True)
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with backups.drafted(target) as draft:
            with progress(f"copy {source.name}", of_bytes=True) as update:
                description = backups.unpack(source, draft, update)
            with progress("check the copy", of_bytes=True) as update:
                backups.examine(draft, description, backup, update)
            if new_node_id:
                (draft / "node-id").unlink(missing_ok=True)
            backups.publish(draft, target)
    if as_json:
        seconds = round(time.monotonic() - began, 3)
        say_json({"directory": directory, "backup": backup, **description, "seconds": seconds})
    else:
        say(
            f"{directory}: {backups.contents(description)}, "
            f"as {description['source']} had them at {description['made']}"
        )
