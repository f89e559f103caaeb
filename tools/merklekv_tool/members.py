"""`merklekv-tool members`: who belongs to a cluster, how far each is, and who keeps deleted keys from being collected.

A deleted key leaves a tombstone, which may go when all members have merged everything up to it.  So one member that is
away holds all of them back: it is shown, and either comes back or is forgotten (`merklekv-tool forget`).

Every node has a table of its own, learned from exchanges; the tables of nodes that meet become the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from merklekv.output import printable
from merklekv_tool.output import AsJson, PlaceName, say, say_json

if TYPE_CHECKING:
    from merklekv.replication.cluster.member_rows import Row

EXAMPLES: Final = """
Examples:

    merklekv-tool members 127.0.0.1:7379
    merklekv-tool members ./data
    merklekv-tool members 127.0.0.1:7379 --json | jq -r '.members[] | select(.holds != "") | .node'

`seen`: everything that the member had so long ago is here. `stable`: it said that it has everything that anybody had so
long ago.
"""
HOLDS: Final = {
    "": "",
    "unmet": "there was no exchange with it yet",
    "view": "last reported other members than are known here",
    "seen": "what it has written since then is not here yet",
    "stable": "does not have yet what others have written since then",
    "unreadable": "cannot be read, so that a member may be missing here",
}
COLUMNS: Final = ("node", "store_id", "state", "address", "contact", "seen", "stable", "holds collection back")
UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def members(place: PlaceName, as_json: AsJson = False) -> None:
    """Show the members of a cluster as one node knows them."""
    from merklekv_tool import places

    with places.opened(place) as there:
        found = there.members()
        name = there.name
    gc_horizon_ns = int(found[0]["gc_horizon_ns"]) if found else 0
    if as_json:
        say_json({"place": name, "gc_horizon_ns": gc_horizon_ns, "members": found})
        return
    now_ns = time.time_ns()
    if found:
        for line in table(found, now_ns):
            say(line)
        say("")
    say(conclusion(found, gc_horizon_ns, now_ns))


def table(found: list[Row], now_ns: int) -> list[str]:
    """The rows in columns."""
    cells: list[tuple[str, ...]] = [COLUMNS]
    for row in found:
        shown = (
            str(row["node"]),
            str(row["store_id"]) or "unknown",
            str(row["state"]),
            str(row["address"]) or "-",
            f"{age(int(row['contact_ms']) // 1000)} ago" if int(row["contact_ms"]) >= 0 else "-",
            moment_ago(int(row["seen_ns"]), now_ns),
            moment_ago(int(row["stable_ns"]), now_ns),
            HOLDS.get(str(row["holds"]), str(row["holds"])),
        )
        cells.append(tuple(map(printable, shown)))
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def conclusion(found: list[Row], gc_horizon_ns: int, now_ns: int) -> str:
    """What all of it means for deleted keys."""
    if not found:
        return "no members are known here: no node has run on this directory yet"
    if not any(row["state"] in ("member", "unreadable") for row in found):
        return "no other member is known here: deleted keys are kept as tombstones"
    if not gc_horizon_ns:
        return "no deleted key was collected yet"
    return f"deleted keys are collected when they are older than {age((now_ns - gc_horizon_ns) // 10**9)}"


def moment_ago(timestamp_ns: int, now_ns: int) -> str:
    """How long ago a time was, `-` for none."""
    return f"{age((now_ns - timestamp_ns) // 10**9)} ago" if timestamp_ns else "-"


def age(seconds: int) -> str:
    """A length of time as a person says it, in its largest unit."""
    seconds = max(0, seconds)
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= 2 * size or size == 1)
    return f"{seconds // size} {unit}"
