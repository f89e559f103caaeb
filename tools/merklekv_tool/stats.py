"""`merklekv-tool stats`: what a running node counts and measures, once or as it changes.

The names are those of STATS (docs/protocol.md). A watch shows beside each number by how much it changes in a second. On
a terminal it redraws in place; elsewhere it writes one block, or one JSON object, for each look.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import printable
from merklekv_tool.output import AsJson, NodeName, say, say_json

if TYPE_CHECKING:
    from rich.table import Table

    from merklekv_tool.places import Node

EXAMPLES: Final = """
Examples:

    merklekv-tool stats 127.0.0.1:7379
    merklekv-tool stats 127.0.0.1:7379 db_keys 'log_*'
    merklekv-tool stats 127.0.0.1:7379 --watch
    merklekv-tool stats 127.0.0.1:7379 total_commands --watch --interval 10 --json >> commands.jsonl

Ctrl-C ends a watch, with exit status 0.
"""
INTERVAL_S: Final = 1.0
INTERVAL_MIN_S: Final = 0.1


class Look(NamedTuple):
    """The figures of one moment, and by how much the numbers among them change in a second."""

    figures: dict[str, str]
    rates: dict[str, float]


def stats(
    node: NodeName,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these; * and ? stand for anything.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=INTERVAL_MIN_S, metavar="SECONDS", help="Between two looks of a watch.")
    ] = INTERVAL_S,
    count: Annotated[
        int, typer.Option("--count", min=0, metavar="N", help="End a watch after N looks; 0 for never.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what a running node counts: once, or live with --watch."""
    from merklekv_tool import places

    if count and not watch:
        raise InvalidArgument("--count is of a watch: give --watch as well")
    with places.node_at(node) as there:
        if not watch:
            figures = chosen(there, names or [])
            if as_json:
                say_json(typed(figures))
            else:
                say(block(figures))
            return
        try:
            follow(looks(there, names or [], interval, count), there.name, as_json)
        except KeyboardInterrupt:
            pass  # the way to end a watch


def chosen(node: Node, patterns: list[str]) -> dict[str, str]:
    """The figures that were asked for, in the order of STATS. Raises InvalidArgument for a name that is none."""
    figures = node.statistics()
    for pattern in patterns:
        if not fnmatch.filter(figures, pattern):
            raise InvalidArgument(f"{node.name}: counts nothing that is called {pattern}")
    return {
        name: value
        for name, value in figures.items()
        if not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def looks(node: Node, patterns: list[str], interval_s: float, count: int) -> Iterator[Look]:
    """Look after look, for ever or `count` times."""
    before: dict[str, str] = {}
    looked_at = 0.0
    number = 0
    while True:
        began = time.monotonic()
        figures = chosen(node, patterns)
        rates = {
            name: (int(value) - int(before[name])) / (began - looked_at)
            for name, value in figures.items()
            if is_number(value) and is_number(before.get(name, ""))
        }
        yield Look(figures, rates)
        before, looked_at = figures, began
        number += 1
        if number == count:
            return
        time.sleep(max(0.0, began + interval_s - time.monotonic()))


def follow(row: Iterator[Look], name: str, as_json: bool) -> None:
    """Shows looks as they come."""
    if as_json:
        for look in row:
            say_json({"time": round(time.time(), 3), **typed(look.figures)})
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False) as screen:
            for look in row:
                screen.update(table(look, name), refresh=True)
    else:
        for look in row:
            say(block(look.figures, look.rates) + "\n")


def is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def typed(figures: dict[str, str]) -> dict[str, object]:
    """Numbers as numbers."""
    return {name: int(value) if is_number(value) else value for name, value in figures.items()}


def block(figures: dict[str, str], rates: dict[str, float] | None = None) -> str:
    """A line for each figure."""
    width = max(map(len, figures), default=0)
    shown = rates or {}
    return "\n".join(
        f"{printable(name):{width}}  {printable(value)}{f'  {shown[name]:+.1f}/s' if shown.get(name) else ''}"
        for name, value in figures.items()
    )


def table(look: Look, name: str) -> Table:
    """The same for a terminal."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table("figure", "value", "a second", title=f"{name}, {time.strftime('%H:%M:%S')}", box=None, pad_edge=False)
    drawn.columns[1].justify = drawn.columns[2].justify = "right"
    for figure, value in look.figures.items():
        rate = look.rates.get(figure, 0.0)
        drawn.add_row(
            printable(figure),
            Text(f"{int(value):,}" if is_number(value) else printable(value)),
            f"{rate:+,.1f}" if rate else "",
            style="bold" if rate else "",
        )
    return drawn
