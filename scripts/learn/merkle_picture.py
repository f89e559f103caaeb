"""What an exchange costs by how much differs: bytes that two nodes send each other, and what of their trees differs.

Both hold the same keys. The broker is gone; one takes some writes, and SYNC makes them equal again; then more, and so
on. What an exchange sends, both ways, is counted on the way.
"""

import select
import socket
import threading
from dataclasses import dataclass, field

from cluster import Cluster, LearnNode
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from merklekv.harness.process import HOST, wait_until

VALUE = b"v" * 100
INNER, LEAVES = 256, 65_536


@dataclass(frozen=True)
class Look:
    """Two nodes before an exchange, and what that sent."""

    keys: int  # that differ
    inner: int
    leaves: int
    sent: int  # bytes, both ways


@dataclass
class Run:
    """What was seen, with how many keys each node holds."""

    keys: int
    looks: list[Look] = field(default_factory=list)


def measure(small: bool) -> Run:
    """The run: an exchange for each number of keys that differ."""
    keys, numbers = (2_000, (1, 10, 100)) if small else (50_000, (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 50_000))
    run = Run(keys)
    with Cluster({"a": 0, "b": 0}) as cluster:
        a, b = cluster.nodes.values()
        _write(a, keys, VALUE)
        wait_until(cluster.is_equal, what="equal roots")
        cluster.stop_broker()
        for number in numbers:
            _write(a, number, b"%-100d" % number)
            different = [
                at for at, (mine, theirs) in enumerate(zip(a.leaves(), b.leaves(), strict=True)) if mine != theirs
            ]
            inner = {leaf // (LEAVES // INNER) for leaf in different}
            assert len(different) > 0
            run.looks.append(Look(number, len(inner), len(different), _sync(a, b)))
            assert cluster.is_equal()
    return run


def _sync(a: LearnNode, b: LearnNode) -> int:
    """One exchange, begun by a; how many bytes went over the wire."""
    passed: list[int] = []
    with socket.create_server((HOST, 0)) as listener:
        wire = threading.Thread(target=_pass_on, args=(listener, b.port, passed))
        wire.start()
        assert a.ask(b"SYNC", HOST.encode(), b"%d" % listener.getsockname()[1]) == b"OK"
        wire.join()
    return sum(passed)


def _pass_on(listener: socket.socket, port: int, passed: list[int]) -> None:
    """Passes one connection on to a port of this machine, both ways, and notes how many bytes go."""
    asking, _ = listener.accept()
    with asking, socket.create_connection((HOST, port)) as asked:
        other = {asking: asked, asked: asking}
        while True:
            for one in select.select(list(other), (), ())[0]:
                data = one.recv(1 << 20)
                if not data:
                    return
                other[one].sendall(data)
                passed.append(len(data))


def _write(node: LearnNode, count: int, value: bytes) -> None:
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        node.ask_all([(b"SET", b"key:%05d" % number, value) for number in numbers])


def draw(small: bool) -> Figure:
    """Bytes at the left, the part of the tree that differs at the right, both by how many keys differ."""
    run = measure(small)
    keys = [look.keys for look in run.looks]
    everything = run.keys * (len(b"key:00000") + 41 + len(VALUE))  # with the heads of the records
    drawing = Figure(figsize=(8, 3.4), layout="constrained")
    sent, tree = drawing.subplots(1, 2)
    sent.loglog(keys, [look.sent for look in run.looks], "o-", color="tab:blue", markersize=4)
    sent.axhline(everything, color="0.5", linestyle="--")
    sent.text(1, everything * 0.8, "sending every record", ha="left", va="top", color="0.4")
    sent.text(keys[0] * 1.5, run.looks[0].sent, f"one key: {run.looks[0].sent / 1000:.0f} kB", va="top")
    sent.set_ylim(bottom=1000)
    sent.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:,.0f} kB"))
    sent.set_title("What an exchange sends, both ways")
    tree.semilogx(keys, [100 * look.inner / INNER for look in run.looks], "o-", color="tab:orange", markersize=4)
    tree.semilogx(keys, [100 * look.leaves / LEAVES for look in run.looks], "o-", color="tab:red", markersize=4)
    tree.text(0.04, 0.62, f"inner nodes, of {INNER}", color="tab:orange", transform=tree.transAxes)
    tree.text(0.4, 0.09, f"leaves, of {LEAVES:,}", color="tab:red", transform=tree.transAxes)
    tree.set_ylim(0, 105)
    tree.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    tree.set_title("What of the trees differs")
    for axes in (sent, tree):
        axes.set_xlabel(f"keys that differ, of {run.keys:,}")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return drawing
