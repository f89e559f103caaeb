"""`merklekv stats`: the metrics of a running node, once or live.

The names are those of STATS (docs/protocol.md). On a terminal they are in groups, and a watch fills its window with
those that say most. Elsewhere there is a line for each metric, or one JSON object, each time.
"""

from __future__ import annotations

import fnmatch
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import is_terminal, printable, require_number
from merklekv_tool.arguments import DEFAULT_NODE, AsJson, NodeName
from merklekv_tool.output import say, say_json, say_result, terminal_width

if TYPE_CHECKING:
    from rich.console import Console

    from merklekv_tool.source.node import Node

EXAMPLES: Final = """
Examples:

    merklekv stats
    merklekv stats db_keys 'log_*'
    merklekv stats 10.0.0.5:7379 --watch
    merklekv stats total_commands --watch --interval 10 --json >> commands.jsonl

The first word is a node if it is PORT, HOST:PORT, an IPv4 address or localhost; otherwise it is a NAME. `q` or Ctrl-C
ends a watch, with exit status 0.
"""
INTERVAL_MIN_S: Final = 0.1
INTERVAL_MAX_S: Final = 86_400


class Sample(NamedTuple):
    """The metrics at one moment, and the change of the numbers among them in a second."""

    metrics: dict[str, str]
    rates: dict[str, float]


def stats(
    node: NodeName = DEFAULT_NODE,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these; * and ? stand for anything.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again.")] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            min=INTERVAL_MIN_S,
            max=INTERVAL_MAX_S,
            callback=require_number,
            metavar="SECONDS",
            help="Between two looks of a watch.",
        ),
    ] = 1.0,
    count: Annotated[
        int, typer.Option("--count", min=0, metavar="N", help="End a watch after N looks; 0 for never.")
    ] = 0,
    show_all: Annotated[
        bool, typer.Option("--all", "-a", help="On a terminal also what is zero or says nothing now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the metrics of a running node: once, or live with --watch."""
    from merklekv_tool.source.open import is_node, open_node

    if count and not watch:
        raise InvalidArgument("--count is of a watch: give --watch as well")
    patterns = names or []
    if not is_node(node):
        node, patterns = DEFAULT_NODE, [node, *patterns]
    with open_node(node) as opened:
        if watch:
            try:
                _follow(opened, patterns, interval, count, show_all, as_json)
            except KeyboardInterrupt:
                pass  # the way to end a watch
            return
        metrics = _chosen(opened, patterns)
        if as_json or terminal_width() is None:
            say_result(_typed(metrics), _block(metrics), as_json)
        else:
            _print_page(Sample(metrics, {}), show_all or bool(patterns))


def _chosen(node: Node, patterns: list[str]) -> dict[str, str]:
    """The metrics that match, in the order of STATS. Raises InvalidArgument for a pattern that matches none."""
    metrics = node.statistics()
    chosen: set[str] = set()
    for pattern in patterns or ["*"]:
        if not (matching := fnmatch.filter(metrics, pattern)):
            raise InvalidArgument(f"{node.name}: has no metric that is called {pattern}")
        chosen.update(matching)
    return {name: value for name, value in metrics.items() if name in chosen}


def _samples(
    node: Node, patterns: list[str], interval_s: float, count: int, wait: Callable[[float], bool]
) -> Iterator[Sample]:
    """Takes `count` samples, or endless ones for 0, until `wait` returns that it is enough."""
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
        if number == count or wait(max(0.0, began + interval_s - time.monotonic())):
            return


def _follow(node: Node, patterns: list[str], interval_s: float, count: int, show_all: bool, as_json: bool) -> None:
    from rich.console import Console

    console = Console()
    if console.is_terminal and not console.is_dumb_terminal and not as_json:
        with _quit_key() as wait:
            _show_live(
                console, _samples(node, patterns, interval_s, count, wait), node.name, show_all or bool(patterns)
            )
        return
    for sample in _samples(node, patterns, interval_s, count, _sleep):
        if as_json:
            say_json({"time": round(time.time(), 3), **_typed(sample.metrics)})
        else:
            say(_block(sample.metrics, sample.rates) + "\n")


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@contextmanager
def _quit_key() -> Iterator[Callable[[float], bool]]:
    """A function that waits so long, and returns whether q was pressed meanwhile."""
    if not is_terminal(sys.stdin):
        yield _sleep
        return
    from merklekv.keys import QUIT, Keys

    with Keys() as keys:

        def wait(seconds: float) -> bool:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                if QUIT in keys.wait(left):
                    return True
            return False

        yield wait


def _show_live(console: Console, samples: Iterator[Sample], name: str, show_all: bool) -> None:
    """Fills the window again and again. The last picture stays."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from merklekv_tool.formats.board import groups, window

    picture = Group()
    with Live(console=console, auto_refresh=False, screen=True) as screen:
        for sample in samples:
            columns, rows = console.size
            head = Text(f"{name}, {time.strftime('%H:%M:%S')}   q ends", no_wrap=True)
            head.truncate(columns)
            lines = window(groups(*sample), rows - 2, columns, show_all)
            picture = Group(head, *lines)
            screen.update(picture, refresh=True)
    console.print(picture, no_wrap=True)


def _print_page(sample: Sample, show_all: bool) -> None:
    from rich.console import Console

    from merklekv_tool.formats.board import groups, page

    console = Console()
    for line in page(groups(*sample), show_all):
        console.print(line, soft_wrap=True, highlight=False)


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
