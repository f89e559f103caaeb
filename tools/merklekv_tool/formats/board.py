"""Metrics for people: in groups, with units, as much as fits into a window.

The groups are the parts of merklekv/metrics.py, each metric under the name that it has there. What is told of each peer
or node is a group of its own. A metric is quiet if it says nothing now: zero, empty, or as it always is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.filesize import decimal
from rich.text import Text

from merklekv import metrics
from merklekv.metrics import Metric
from merklekv.output import printable

TRAFFIC: Final = "traffic"
DATA: Final = "data"
LOG: Final = "log and checkpoints"
REPLICATION: Final = "replication"
EXCHANGES: Final = "exchanges"
SCRUB: Final = "scrub"
NODE: Final = "node"
OTHER: Final = "other"
ORDER: Final = (TRAFFIC, DATA, LOG, REPLICATION, EXCHANGES, SCRUB, NODE, OTHER)  # most useful first
TITLES: Final[Mapping[type, str]] = {
    metrics.ClientMetrics: TRAFFIC,
    metrics.ServerMetrics: TRAFFIC,
    metrics.EngineMetrics: LOG,
    metrics.NodeMetrics: NODE,
    metrics.ReplicationMetrics: REPLICATION,
    metrics.ReplicationCounters: REPLICATION,
    metrics.OriginMetrics: REPLICATION,
    metrics.ExchangeMetrics: EXCHANGES,
    metrics.ScrubMetrics: SCRUB,
}
OF_DATA: Final = re.compile(r"db_\w+|expired_keys|durability")
OWN_GROUP: Final = ("peer", "node")  # labels
DULL: Final = ("uptime", "server_time_unix")  # quiet whatever they say
AS_ALWAYS: Final = {"checkpoint_percent": ("100",), "thread_status": ("idle", "running")}

VALUE_WIDTH: Final = 40  # of longer values a window shows the beginning
GAP: Final = 2
EXACT_BELOW: Final = 100  # rates have a digit behind the point
EPOCH_S: Final = 10**9  # seconds beyond are a date
UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"))

_DECLARED: Final = {name: (part, metric) for part in metrics.PARTS for name, metric in metrics.declared(part).items()}
_PATTERNS: Final = [
    (re.compile(metric.pattern.format(r"\w+")), part, metric) for part, metric in _DECLARED.values() if metric.pattern
]


class Line(NamedTuple):
    """A metric as it is shown."""

    name: str
    value: str
    rate: str
    is_quiet: bool


class Group(NamedTuple):
    """Metrics under a title."""

    title: str
    lines: list[Line]


def groups(values: Mapping[str, str], rates: Mapping[str, float]) -> list[Group]:
    """All metrics in their groups, most useful first; `rates` are changes in a second."""
    found: dict[tuple[int, str], Group] = {}
    for name, value in values.items():
        bare, label, part, metric = _place(name)
        title = TITLES.get(part, OTHER) if part else OTHER
        if title == LOG and OF_DATA.fullmatch(bare):
            title = DATA
        order = ORDER.index(title)
        shown_name = bare
        if label and metric is not None and metric.label in OWN_GROUP:
            title = f"{title}: {printable(label)}"
        elif label:
            shown_name = f"{bare} {label}"
        rate = rates.get(name, 0.0)
        is_quiet = bare in DULL or (not rate and value in ("", "0", *AS_ALWAYS.get(bare, ())))
        line = Line(printable(shown_name), human(value, metric), _rate(rate, metric), is_quiet)
        found.setdefault((order, title), Group(title, [])).lines.append(line)
    return [found[key] for key in sorted(found)]


def _place(name: str) -> tuple[str, str, type | None, Metric | None]:
    """The name without its label, the label, and what declares it."""
    bare, label = metrics.split_name(name)
    if bare in _DECLARED:
        return bare, label, *_DECLARED[bare]
    return next(
        ((name, "", part, metric) for pattern, part, metric in _PATTERNS if pattern.fullmatch(name)),
        (bare, label, None, None),
    )


def human(value: str, metric: Metric | None) -> str:
    """A value with its unit."""
    if not value.removeprefix("-").isdecimal():
        return printable(value)
    number = int(value)
    match metric.unit if metric is not None else "":
        case "bytes":
            return decimal(number)
        case "kb":
            return decimal(1024 * number)
        case "percent":
            return f"{number} %"
        case "ms":
            return f"{number} ms" if number < 1000 else duration(number // 1000)
        case "ns":
            return f"{duration(int(time.time()) - number // 10**9)} ago" if number else "-"
        case "s" | "seconds":
            return f"{duration(int(time.time()) - number)} ago" if number > EPOCH_S else duration(number)
    return f"{number:,}"


def duration(seconds: int) -> str:
    """Seconds in the largest unit of which there are two."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= 2 * size), (1, "s"))
    return f"{max(0, seconds) // size} {unit}"


def _rate(rate: float, metric: Metric | None) -> str:
    unit = metric.unit if metric is not None else ""
    if not rate or unit not in ("", "bytes"):
        return ""
    if unit == "bytes":
        return f"{'-' if rate < 0 else '+'}{decimal(int(abs(rate)))}/s"
    return f"{rate:+,.{0 if abs(rate) >= EXACT_BELOW else 1}f}/s"


def page(found: list[Group], show_quiet: bool) -> list[Text]:
    """The lines for a terminal that scrolls, and how many were left out."""
    kept = [Group(one.title, [line for line in one.lines if show_quiet or not line.is_quiet]) for one in found]
    width = max((cell_len(line.name) for one in kept for line in one.lines), default=0)
    lines: list[Text] = []
    for one in kept:
        if one.lines:
            lines.append(Text(one.title, "bold cyan"))
            lines += [Text(f"  {set_cell_size(line.name, width)}  {line.value}") for line in one.lines]
    hidden = sum(len(one.lines) for one in found) - sum(len(one.lines) for one in kept)
    return [*lines, Text(f"{hidden} more say nothing now: --all", "dim")] if hidden else lines


def window(found: list[Group], rows: int, columns: int, show_quiet: bool) -> list[Text]:
    """At most so many rows, in one or more columns. Quiet metrics come in by group, for room or for `show_quiet`."""
    for whole in range(len(found), len(found) - 1 if show_quiet else -1, -1):
        shown = [*_rows(found[:whole], True), *_rows(found[whole:], False)]
        if (drawn := _columns(shown, rows, columns)) is not None:
            return drawn
    for fit in range(len(shown), 0, -1):
        if (drawn := _columns(shown[:fit], rows - 1, columns)) is not None:
            return [*drawn, Text(set_cell_size(f"{len(shown) - fit} more lines in a larger window", columns), "dim")]
    return []


def _rows(found: list[Group], show_quiet: bool) -> list[str | Line]:
    """Titles, and the lines below each."""
    rows: list[str | Line] = []
    for one in found:
        if kept := [line for line in one.lines if show_quiet or not line.is_quiet]:
            rows += [one.title, *kept]
    return rows


def _columns(shown: list[str | Line], rows: int, columns: int) -> list[Text] | None:
    """The lines side by side, filled from above; None if they do not fit."""
    lines = [one for one in shown if isinstance(one, Line)]
    widths = [
        max(map(cell_len, cells), default=0)
        for cells in ([line.name for line in lines], [line.value for line in lines], [line.rate for line in lines])
    ]
    widths[1] = min(widths[1], VALUE_WIDTH)
    whole = sum(widths) + 3 * GAP
    beside = max(1, (columns + GAP) // (whole + GAP))
    if rows < 1 or len(shown) > beside * rows:
        return None
    drawn = [Text() for _ in range(min(rows, len(shown)))]
    for at, one in enumerate(shown):
        row = drawn[at % rows]
        row.append(" " * GAP if row else "")
        row.append_text(_row(one, widths, whole))
    for row in drawn:
        row.truncate(columns)
    return drawn


def _row(one: str | Line, widths: list[int], whole: int) -> Text:
    if isinstance(one, str):
        return Text(set_cell_size(one, whole), "bold cyan")
    name, value, rate = map(set_cell_size, (one.name, one.value, one.rate), widths)
    value = value.rstrip().rjust(len(value)) if value.isascii() else value
    row = Text(" " * GAP + name + " " * GAP, "dim" if one.is_quiet else "")
    row.append(value, "dim" if one.is_quiet else "bold")
    return row.append(" " * GAP + rate.rstrip().rjust(len(rate)), "green")
