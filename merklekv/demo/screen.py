"""The picture of the demo in a terminal of any size.

The table, the verdict and the keys are always there; what else there is room for, `_lines` says. Every line and every
column keeps its place, and figures change once a second while all is well: so a change catches the eye.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from merklekv.demo.cluster import Cluster
from merklekv.demo.health import State
from merklekv.demo.part import NodePart
from merklekv.engine.format import INNER_NODES
from merklekv.harness.process import HOST

NAME, STATE, KEYS, ROOT, OUTBOX = 8, 10, 6, 10, 8  # widths of columns
ROOT_DIGITS: Final = 8
ROOT_FROM: Final = 64  # columns of the terminal
BAR_MAX: Final = 40
BAR_EVENTS: Final = 1_000  # in a full bar
VERDICT_LINES: Final = 2
STYLES: Final = {"up": "green", "starting": "yellow", "stopping": "yellow"}
VERDICT_STYLES: Final = {State.EQUAL: "bold green", State.OUTAGE: "bold red"}
HELP: Final = "1 2 3 kill -9 or start a node   b the broker   t {}   s show   q quit"
SHORT_HELP: Final = "1 2 3 b kill/start t {} s show q quit"


class Picture:
    """The state of the cluster, the address of its page, and what happened last."""

    def __init__(self, cluster: Cluster, address: str, happened: Sequence[str]) -> None:
        self._cluster = cluster
        self._address = address
        self._happened = happened

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.size
        for line in self._lines(console, width, height, options.ascii_only)[:height]:
            line.truncate(width, overflow="crop" if options.ascii_only else "ellipsis")
            line.no_wrap = True
            yield line

    def _lines(self, console: Console, width: int, height: int, ascii_only: bool) -> list[Text]:
        cluster = self._cluster
        spare = height - len(cluster.nodes) - 1 - VERDICT_LINES - 1
        has_address, has_strips, has_titles, has_gaps = spare >= 1, spare >= 4, spare >= 5, spare >= 8
        gap = [Text()] if has_gaps else []
        lines = [Text(self._address)] if has_address else []
        lines += gap
        lines += [_titles(width)] if has_titles else []
        common = _most_common([node.view.root for node in cluster.nodes if node.view])
        for node in cluster.nodes:
            lines.append(self._row(node, common, width, ascii_only))
            lines += [self._strip(node, width, ascii_only)] if has_strips else []
        broker = cluster.broker
        where = f"{broker.process.kind} on {HOST}:{broker.process.port}"
        lines += [Text.assemble(broker.name.ljust(NAME), _state(cluster.states.get(broker.name, "")), where), *gap]
        style = "bold red" if cluster.has_lost else VERDICT_STYLES.get(cluster.health.state, "bold yellow")
        verdict = Text(cluster.verdict(), style).wrap(console, width)
        lines += [*verdict, *[Text()] * VERDICT_LINES][:VERDICT_LINES]
        keys = (HELP if width > len(HELP) else SHORT_HELP).format("pause" if cluster.writing else "go on")
        lines += [Text(keys, "bold"), *gap]
        room = max(0, height - len(lines))
        return lines + [Text(event, "dim") for event in list(self._happened)[len(self._happened) - room :]]

    def _row(self, node: NodePart, common_root: str, width: int, ascii_only: bool) -> Text:
        row = Text.assemble(node.name.ljust(NAME), _state(self._cluster.states.get(node.name, "")))
        view = self._cluster.shown.get(node.name)
        if view is None:
            return row
        row.append(f"{view.keys:{KEYS},}")
        if width >= ROOT_FROM:
            row.append(f"{view.root[:ROOT_DIGITS]:>{ROOT}}", "green" if view.root == common_root else "yellow")
        cells = _bar_cells(width)
        filled = min(cells, -(-cells * view.outbox // BAR_EVENTS))
        full, edges = ("#", "[]") if ascii_only else ("█", "▕▏")
        row.append(f" {edges[0]}")
        row.append((full * filled).ljust(cells), "yellow")
        row.append(edges[1])
        row.append(f"{view.outbox:{OUTBOX - 1},}", "yellow" if view.outbox else "")
        return row

    def _strip(self, node: NodePart, width: int, ascii_only: bool) -> Text:
        """The parts of the Merkle tree in which the node differs, squeezed to the width."""
        shades = ".:+#" if ascii_only else "·░▒█"
        strip = Text(" " * NAME)
        if node.name not in self._cluster.differing:
            return strip
        cells = max(1, min(INNER_NODES, width - NAME))
        differing = Counter(part * cells // INNER_NODES for part in self._cluster.differing[node.name])
        for cell in range(cells):
            share = differing[cell] * cells / INNER_NODES
            shade = min(3, 1 + int(share * 3)) if share else 0
            strip.append(shades[shade], "yellow" if shade else "dim")
        return strip


def _titles(width: int) -> Text:
    titles = f"{'node':{NAME}}{'state':{STATE}}{'keys':>{KEYS}}"
    titles += "  root".ljust(ROOT) if width >= ROOT_FROM else ""
    return Text(f"{titles} {'outbox':>{_bar_cells(width) + OUTBOX + 1}}", "dim")


def _bar_cells(width: int) -> int:
    others = NAME + STATE + KEYS + (ROOT if width >= ROOT_FROM else 0) + OUTBOX + 2
    return max(1, min(BAR_MAX, width - others))


def _state(state: str) -> Text:
    return Text(state.ljust(STATE), STYLES.get(state, "bold red"))


def _most_common(roots: Sequence[str]) -> str:
    return Counter(roots).most_common(1)[0][0] if roots else ""
