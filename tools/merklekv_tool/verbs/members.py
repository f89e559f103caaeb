"""`merklekv members`: the members of a cluster, how far each is, and which of them hold back the GC horizon.

A deleted key leaves a tombstone, which is collected when all members have applied everything up to it. One member that
is away therefore holds all tombstones back: it is shown, and either comes back or is removed (`merklekv forget`).

Each node has its own member table. Exchanges merge the tables, so nodes that exchange have the same members.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from merklekv.output import printable
from merklekv_tool.arguments import DEFAULT_NODE, AsJson, SourceName
from merklekv_tool.output import say_result, terminal_width

if TYPE_CHECKING:
    from merklekv.replication.cluster.display import DisplayRow

EXAMPLES: Final = """
Examples:

    merklekv members 127.0.0.1:7379
    merklekv members ./data
    merklekv members 127.0.0.1:7379 --json | jq -r '.members[] | select(.holds_back != "") | .node'

`applied through`: every write that the member had so long ago is applied here. `stable`: the member reported that it
has applied every write that any member had so long ago.
"""
HOLDS_BACK: Final = {
    "": "",
    "unmet": "no exchange with it yet",
    "view": "last reported other members than this node knows",
    "applied_through": "its later writes are not applied here yet",
    "stable": "has not yet applied later writes of other members",
    "unreadable": "its row cannot be read, so a member may be missing here",
}
COLUMNS: Final = [
    *("node", "store id", "state", "address", "contact"),
    *("applied through", "stable", "holds back GC because"),
]
UNKNOWN: Final = "-"
AHEAD_S: Final = 60  # clocks of several machines differ a little
UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def members(source: SourceName = DEFAULT_NODE, as_json: AsJson = False) -> None:
    """Show the members of a cluster as one node knows them."""
    from merklekv_tool.source.open import open_source

    with open_source(source) as node:
        rows = node.members()
    gc_horizon_ns = int(rows[0]["gc_horizon_ns"]) if rows else 0
    now_ns = time.time_ns()
    refused = [f"node {row['node']} refuses {row['refuses']}" for row in rows if row["refuses"]]
    problems = [str(row["clock_problem"]) for row in rows if row["clock_problem"]]
    lines = table(rows, now_ns)
    if (width := terminal_width()) and max(map(len, lines)) > width:
        lines = blocks(rows, now_ns)
    lines = [*lines, "", *map(printable, problems + refused)] if rows else []
    text = "\n".join([*lines, conclusion(rows, gc_horizon_ns, now_ns)])
    say_result({"source": node.name, "gc_horizon_ns": gc_horizon_ns, "members": rows}, text, as_json)


def table(rows: list[DisplayRow], now_ns: int) -> list[str]:
    """The rows in columns."""
    cells = [COLUMNS, *(_cells(row, now_ns) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def blocks(rows: list[DisplayRow], now_ns: int) -> list[str]:
    """The rows one below the other, for a terminal that is too narrow for the table."""
    lines = []
    for row in rows:
        named = zip(COLUMNS, _cells(row, now_ns), strict=True)
        (_, node), *others = [(name, cell) for name, cell in named if cell not in ("", UNKNOWN)]
        lines += [node, *(f"    {name}: {cell}" for name, cell in others)]
    return lines


def _cells(row: DisplayRow, now_ns: int) -> list[str]:
    shown = [
        str(row["node"]),
        str(row["store_id"]) or "unknown",
        str(row["state"]),
        str(row["address"]) or UNKNOWN,
        f"{age(int(row['contact_ms']) // 1000)} ago" if int(row["contact_ms"]) >= 0 else UNKNOWN,
        _ago(int(row["applied_through_ns"]), now_ns),
        _ago(int(row["stable_ns"]), now_ns),
        HOLDS_BACK.get(str(row["holds_back"]), str(row["holds_back"])),
    ]
    return list(map(printable, shown))


def conclusion(rows: list[DisplayRow], gc_horizon_ns: int, now_ns: int) -> str:
    """What the rows mean for deleted keys."""
    if not rows:
        return "no members are known here: no node has run on this directory yet"
    if not any(row["state"] in ("member", "unreadable") for row in rows):
        return "no other member is known here: a node that never met one keeps nothing of deleted keys"
    if not gc_horizon_ns:
        return "no deleted key was collected yet"
    return f"deleted keys from before the GC horizon, {_ago(gc_horizon_ns, now_ns)}, are collected"


def _ago(timestamp_ns: int, now_ns: int) -> str:
    if not timestamp_ns:
        return UNKNOWN
    seconds = (now_ns - timestamp_ns) // 10**9
    return f"in {age(-seconds)}" if seconds < -AHEAD_S else f"{age(seconds)} ago"


def age(seconds: int) -> str:
    """A duration in its largest unit."""
    seconds = max(0, seconds)
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= 2 * size or size == 1)
    return f"{seconds // size} {unit}"
