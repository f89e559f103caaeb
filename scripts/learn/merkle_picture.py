"""A Merkle tree that diverges and heals, twice: the leaves in which two nodes differ, before and after an exchange.

Both hold the same keys.  Then the broker is gone; one takes a few writes, and SYNC makes them equal again; both take
many, and SYNC does it again.  What an exchange sent, both ways, is counted by the node that asked for it.
"""

from dataclasses import dataclass, field

import numpy as np
from cluster import Cluster, LearnNode
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merklekv.harness.process import HOST, wait_until
from merklekv.metrics import total

SIDE = 256  # 256 inner nodes with 256 leaves each
VALUE = b"v" * 100


@dataclass
class Run:
    """What was seen: for each look a title, and 256 x 256 leaves, 0 equal, 1 different."""

    looks: list[tuple[str, np.ndarray]] = field(default_factory=list)
    keys: int = 0

    def look(self, title: str, a: LearnNode, b: LearnNode) -> None:
        """One more panel."""
        pairs = zip(a.leaves(), b.leaves(), strict=True)
        self.looks.append((title, np.array([left != right for left, right in pairs]).reshape(SIDE, SIDE)))


def measure(small: bool) -> Run:
    """The run, with a look at both trees at each of its turns."""
    shared, few, many = (2_000, 10, 100) if small else (50_000, 30, 1_000)
    run = Run(keys=shared + few + 2 * many)
    with Cluster({"a": 0, "b": 0}, exchanges=True) as cluster:
        a, b = cluster.nodes.values()
        _write(a, b"shared", shared)
        wait_until(cluster.is_equal, what="equal roots")
        run.look(f"{shared:,} keys on both", a, b)
        cluster.stop_broker()
        _write(a, b"few", few)
        run.look(f"{few:,} writes on one", a, b)
        sent = _sync(a, b)
        run.look(f"after SYNC: {sent / 1000:,.0f} kB", a, b)
        _write(a, b"a", many)
        _write(b, b"b", many)
        run.look(f"{many:,} writes on each", a, b)
        sent = _sync(a, b)
        run.look(f"after SYNC: {sent / 1000:,.0f} kB", a, b)
    return run


def _sync(a: LearnNode, b: LearnNode) -> int:
    """One exchange, begun by a; how many bytes it sent."""
    before = _sent_bytes(a)
    assert a.ask(b"SYNC", HOST.encode(), b"%d" % b.port) == b"OK"
    return _sent_bytes(a) - before


def _sent_bytes(node: LearnNode) -> int:
    figures = node.figures()
    return total(figures, "exchange_bytes_sent") + total(figures, "exchange_bytes_received")


def _write(node: LearnNode, prefix: bytes, count: int) -> None:
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        node.ask_all([(b"SET", b"%b:%d" % (prefix, number), VALUE) for number in numbers])


def draw(small: bool) -> Figure:
    """A panel for each look: a dot is a leaf in which they differ, a stroke at the left an inner node."""
    run = measure(small)
    drawing = Figure(figsize=(10, 2.9), layout="constrained")
    for axes, (title, grid) in zip(drawing.subplots(1, len(run.looks)), run.looks, strict=True):
        _panel(axes, title, grid)
    total_kb = run.keys * len(VALUE) / 1000
    drawing.suptitle(f"Leaves that differ between two nodes, which hold {total_kb:,.0f} kB of values", fontsize=10)
    return drawing


def _panel(axes: Axes, title: str, grid: np.ndarray) -> None:
    rows, columns = np.nonzero(grid)
    axes.plot(columns, rows, "s", color="tab:red", markersize=1.3, markeredgewidth=0, rasterized=True)
    inner = np.nonzero(grid.any(axis=1))[0]
    axes.hlines(inner, -14, -6, color="tab:orange", linewidth=0.4, rasterized=True)
    axes.set_xlim(-16, SIDE)
    axes.set_ylim(SIDE, -1)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("0.8")
    axes.set_title(title)
    axes.set_xlabel(f"{len(inner)} of 256 inner nodes,\n{len(rows):,} of 65,536 leaves")
