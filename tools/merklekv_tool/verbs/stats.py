"""`merklekv-tool stats`: the metrics of a running node, once or live.

The names are those of STATS (docs/protocol.md). A watch shows beside each number its change in a second. On a terminal
it redraws in place; elsewhere it writes one block, or one JSON object, each time.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import printable
from merklekv_tool.arguments import AsJson, NodeName
from merklekv_tool.output import say, say_json, say_result

if TYPE_CHECKING:
    from rich.table import Table

    from merklekv_tool.source.node import Node

EXAMPLES: Final = """
Examples:

    merklekv-tool stats 127.0.0.1:7379
    merklekv-tool stats 127.0.0.1:7379 db_keys 'log_*'
    merklekv-tool stats 127.0.0.1:7379 --watch
    merklekv-tool stats 127.0.0.1:7379 total_commands --watch --interval 10 --json >> commands.jsonl

Ctrl-C ends a watch, with exit status 0.
"""
INTERVAL_MIN_S: Final = 0.1


class Sample(NamedTuple):
    """The metrics at one moment, and the change of the numbers among them in a second."""

    metrics: dict[str, str]
    rates: dict[str, float]


def stats(
    node: NodeName,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these; * and ? stand for anything.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=INTERVAL_MIN_S, metavar="SECONDS", help="Between two looks of a watch.")
    ] = 1.0,
    count: Annotated[
        int, typer.Option("--count", min=0, metavar="N", help="End a watch after N looks; 0 for never.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Show the metrics of a running node: once, or live with --watch."""
    from merklekv_tool.source.open import open_node

    if count and not watch:
        raise InvalidArgument("--count is of a watch: give --watch as well")
    with open_node(node) as opened:
        if watch:
            try:
                _follow(_samples(opened, names or [], interval, count), opened.name, as_json)
            except KeyboardInterrupt:
                pass  # the way to end a watch
            return
        metrics = _chosen(opened, names or [])
        say_result(_typed(metrics), _block(metrics), as_json)


def _chosen(node: Node, patterns: list[str]) -> dict[str, str]:
    """The metrics that match, in the order of STATS. Raises InvalidArgument for a pattern that matches none."""
    metrics = node.statistics()
    chosen: set[str] = set()
    for pattern in patterns or ["*"]:
        if not (matching := fnmatch.filter(metrics, pattern)):
            raise InvalidArgument(f"{node.name}: counts nothing that is called {pattern}")
        chosen.update(matching)
    return {name: value for name, value in metrics.items() if name in chosen}


def _samples(node: Node, patterns: list[str], interval_s: float, count: int) -> Iterator[Sample]:
    """Takes `count` samples, or endless ones for 0."""
    before: dict[str, str] = {}
    sampled_at = 0.0
    number = 0
    while True:
        began = time.monotonic()
        metrics = _chosen(node, patterns)
        rates = {
            name: (int(value) - int(before[name])) / (began - sampled_at)
            for name, value in metrics.items()
            if _is_number(value) and _is_number(before.get(name, ""))
        }
        yield Sample(metrics, rates)
        before, sampled_at = metrics, began
        number += 1
        if number == count:
            return
        time.sleep(max(0.0, began + interval_s - time.monotonic()))


def _follow(samples: Iterator[Sample], name: str, as_json: bool) -> None:
    if as_json:
        for sample in samples:
            say_json({"time": round(time.time(), 3), **_typed(sample.metrics)})
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False) as screen:
            for sample in samples:
                screen.update(_table(sample, name), refresh=True)
    else:
        for sample in samples:
            say(_block(sample.metrics, sample.rates) + "\n")


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _typed(metrics: dict[str, str]) -> dict[str, object]:
    return {name: int(value) if _is_number(value) else value for name, value in metrics.items()}


def _block(metrics: dict[str, str], rates: dict[str, float] | None = None) -> str:
    """A line for each metric."""
    width = max(map(len, metrics), default=0)
    shown = rates or {}
    return "\n".join(
        f"{printable(name):{width}}  {printable(value)}{f'  {shown[name]:+.1f}/s' if shown.get(name) else ''}"
        for name, value in metrics.items()
    )


def _table(sample: Sample, name: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("metric", "value", "a second", title=f"{name}, {time.strftime('%H:%M:%S')}", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for metric, value in sample.metrics.items():
        rate = sample.rates.get(metric, 0.0)
        table.add_row(
            printable(metric),
            Text(f"{int(value):,}" if _is_number(value) else printable(value)),
            f"{rate:+,.1f}" if rate else "",
            style="bold" if rate else "",
        )
    return table
