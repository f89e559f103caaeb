"""The demo in a terminal of 80 columns or more: the picture, and the keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from merklekv.demo.cluster import BROKER, Cluster
from merklekv.demo.part import NodePart
from merklekv.harness.process import HOST
from merklekv.output import counted

ROOT_DIGITS: Final = 12
HELP: Final = "1 2 3 kill -9 or start a node   b the same for the broker   t writing   q quit"
STYLES: Final = {"up": "green", "starting": "yellow", "stopping": "yellow", "frozen": "red", "down": "red"}


def picture(cluster: Cluster, happened: Iterable[str]) -> RenderableType:
    """The state of the cluster and the last events."""
    table = Table(box=box.SIMPLE)
    for title, align in (
        ("node", "left"),
        ("port", "right"),
        ("state", "left"),
        ("keys", "right"),
        ("Merkle root", "left"),
        ("outbox", "right"),
        ("broker", "left"),
    ):
        table.add_column(title, justify=align, no_wrap=True)  # type: ignore[arg-type]
    roots = Counter(node.view.root for node in cluster.nodes if node.view is not None)
    common = roots.most_common(1)[0][0] if roots else ""
    for node in cluster.nodes:
        table.add_row(*_row(node, cluster.states.get(node.name, ""), common))
    broker = Text.assemble(
        f"broker {cluster.broker.process.kind} on {HOST}:{cluster.broker.process.port} ",
        _state(cluster.states.get(BROKER, "")),
    )
    traffic = f"{'writing' if cluster.writing else 'paused'}, {counted(cluster.written, 'write')} acknowledged"
    verdict = Text(cluster.verdict(), style="bold green" if cluster.is_converged else "bold yellow")
    lines = [broker, Text(traffic), verdict, Text(), Text(HELP, style="bold"), Text()]
    return Group(table, *lines, Text("\n".join(happened), style="dim"))


def _state(state: str) -> Text:
    return Text(state, style=STYLES.get(state, "red"))


def _row(node: NodePart, state: str, common_root: str) -> list[RenderableType]:
    shown: list[RenderableType] = [node.name, str(node.process.port), _state(state)]
    if node.view is None:
        return shown
    view = node.view
    root = Text(view.root[:ROOT_DIGITS], style="green" if view.root == common_root else "yellow")
    outbox = Text(f"{view.outbox:,}", style="yellow" if view.outbox else "")
    return [*shown, f"{view.keys:,}", root, outbox, view.connection]
