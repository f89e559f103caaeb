"""The picture of the demo fits windows of any size, and nothing in it moves without a reason."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from merklekv.demo.cluster import Cluster
from merklekv.demo.health import State
from merklekv.demo.part import View
from merklekv.demo.screen import NAME, Picture

SIZES = ((40, 8), (60, 12), (80, 24), (120, 40), (250, 60))
EQUAL = "All equal, 0 of 12,290 acknowledged writes lost, healed in 1.5 s"


def a_cluster(outbox: int = 0, keys: int = 600, verdict: str = EQUAL, differing: tuple[int, ...] = ()) -> Cluster:
    """What the picture asks of a cluster, with node-3 down."""
    nodes = [SimpleNamespace(name=f"node-{number}", view=None) for number in (1, 2, 3)]
    view = View(keys, "0123456789abcdef", 3, "connected", outbox)
    nodes[0].view = nodes[1].view = view
    return cast(
        Cluster,
        SimpleNamespace(
            nodes=nodes,
            shown={"node-1": view, "node-2": view, "node-3": None},
            states={"node-1": "up", "node-2": "starting", "node-3": "down", "broker": "up"},
            broker=SimpleNamespace(name="broker", process=SimpleNamespace(kind="mosquitto", port=20123)),
            health=SimpleNamespace(state=State.EQUAL),
            has_lost=False,
            writing=True,
            differing={"node-1": list(differing), "node-2": [], "node-3": []},
            verdict=lambda: verdict,
        ),
    )


def lines(
    cluster: Cluster, width: int, height: int, happened: tuple[str, ...] = (), encoding: str = "utf-8"
) -> list[str]:
    written = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=written, width=width, height=height, color_system=None)
    console.print(Picture(cluster, "the page is at http://127.0.0.1:8379/", happened), end="")
    written.seek(0)
    return written.read().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_fits_and_says_what_matters(width: int, height: int) -> None:
    happened = tuple(f"event {number}" for number in range(12))
    shown = lines(a_cluster(outbox=1_234, verdict="node-3 is down: " + "word " * 50), width, height, happened)
    assert len(shown) <= height
    assert max(map(len, shown)) <= width
    text = "\n".join(shown)
    for name in ("node-1  up", "node-2  starting", "node-3  down", "broker  up", "1,234", "node-3 is down:", "q quit"):
        assert name in text
    assert "http://127.0.0.1:8379/" in text
    assert ("event 11" in text) == (height > 12)  # the newest


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_column_moves(width: int, height: int) -> None:
    def edges(cluster: Cluster) -> list[tuple[int, int, int]]:
        rows = [line for line in lines(cluster, width, height) if "▕" in line]
        return [(row.index("▕"), row.index("▏"), len(row)) for row in rows]

    first = edges(a_cluster())
    assert len(set(first)) == 1
    for other in (a_cluster(outbox=123_456, keys=99_999), a_cluster(keys=0, verdict="short"), a_cluster(outbox=9)):
        assert edges(other) == first


def test_the_bar_fills() -> None:
    def filled(outbox: int) -> int:
        return "\n".join(lines(a_cluster(outbox), 80, 24)).count("█") // 2

    assert filled(0) == 0
    assert filled(1) == 1
    assert filled(250) < filled(500) < filled(1_000) == filled(50_000)


@pytest.mark.parametrize("width", [40, 80, NAME + 256, 400])
def test_the_strip_shows_where_a_node_differs(width: int) -> None:
    shown = lines(a_cluster(differing=(0, 128, 255)), width, 24)
    at = next(number for number, line in enumerate(shown) if line.startswith("node-1"))
    strip, other = shown[at + 1][NAME:], shown[at + 3][NAME:]
    cells = min(256, width - NAME)
    assert len(strip) == len(other) == cells
    assert set(other) == {"·"}
    assert [number for number, cell in enumerate(strip) if cell != "·"] == [0, 128 * cells // 256, cells - 1]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    shown = "\n".join(lines(a_cluster(outbox=500, differing=(3,)), 80, 24, encoding="ascii"))
    assert shown.isascii()
    assert "[#" in shown
    assert ".:." in shown or ":.." in shown
