"""`merklekv compact`: writes the base of a directory anew, as small as it can be.

A node does this by itself when most of its base is free. This verb does it in any case, and takes the log into the base
first. A crash leaves the old base or the new one, which contain the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from merklekv.output import counted
from merklekv_tool.arguments import AsJson
from merklekv_tool.output import progress, say_result
from merklekv_tool.signals import held_signals

EXAMPLES: Final = """
Examples:

    systemctl stop merklekv
    merklekv compact /var/lib/merklekv && systemctl start merklekv
    merklekv compact ./data --json | jq .bytes

The new base needs its size on the same disk beside the old one while it is written.
"""


def compact(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A data directory that no node has open.")],
    as_json: AsJson = False,
) -> None:
    """Give the free space inside a data directory back to the file system."""
    from merklekv_tool.source.open import open_to_change, require_stopped

    began = time.monotonic()
    path = require_stopped(directory, "a running node does this by itself; give its directory when it is stopped")
    before = _size_of(path)
    with open_to_change(path) as engine, progress(f"compact {directory}") as update, held_signals() as end_if_due:

        def heed(done: int, total: int) -> None:
            end_if_due()  # here the new base is removed; in the swap of the two it would stay
            update(done, total)

        engine.compact_now(heed)
    size = _size_of(path)
    seconds = round(time.monotonic() - began, 3)
    say_result(
        {"directory": directory, "bytes_before": before, "bytes": size, "seconds": seconds},
        f"{directory}: takes {counted(size, 'byte')} on disk, before {counted(before, 'byte')}",
        as_json,
    )


def _size_of(path: Path) -> int:
    """Bytes that the files of a directory take on disk."""
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())
