"""An outbox that fills and drains: one node takes writes at a steady rate while the broker goes away and comes back."""

import threading
import time
from dataclasses import dataclass, field

from cluster import Cluster, LearnNode
from matplotlib.figure import Figure

from merklekv.harness.process import wait_until

LOOK_EVERY_S = 0.05


@dataclass
class Run:
    """What was seen, by seconds since the beginning."""

    began: float = field(default_factory=time.monotonic)
    looks: list[tuple[float, int, int, int]] = field(default_factory=list)  # time, keys on a, keys on b, outbox of a
    outage: list[float] = field(default_factory=list)

    def now(self) -> float:
        return time.monotonic() - self.began


def measure(small: bool) -> Run:
    """The run: writes on a, the broker up, down and up again, until b has everything."""
    rate, part_s = (100, 0.5) if small else (300, 2.0)
    with Cluster({"a": 0, "b": 0}) as cluster:
        run, over = Run(), threading.Event()
        a, b = cluster.nodes.values()

        def look() -> bool:
            """Looks once more: whether b has everything."""
            keys_a, keys_b, waiting = _keys(a), _keys(b), int(a.figures()["outbox_events"])
            run.looks.append((run.now(), keys_a, keys_b, waiting))
            return keys_a == keys_b and not waiting

        def write_until(end: float) -> None:
            while run.now() < end:
                done = run.looks[-1][1]
                a.ask_all([(b"SET", b"key:%d" % number, b"v") for number in range(done, int(run.now() * rate))])
                look()
                over.wait(LOOK_EVERY_S)

        look()
        write_until(part_s)
        run.outage.append(run.now())
        cluster.broker.stop()
        write_until(3 * part_s)
        run.outage.append(run.now())
        cluster.broker.start()
        write_until(5 * part_s)
        wait_until(look, what="b to have everything")
    return run


def _keys(node: LearnNode) -> int:
    reply = node.ask(b"DBSIZE")
    assert isinstance(reply, int)
    return reply


def draw(small: bool) -> Figure:
    """Keys of both nodes above, what waits in the outbox below."""
    run = measure(small)
    times, keys_a, keys_b, waiting = zip(*run.looks, strict=True)
    drawing = Figure(figsize=(8, 4.2), layout="constrained")
    above, below = drawing.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    above.plot(times, keys_a, color="tab:blue", label="a, which clients write to")
    above.plot(times, keys_b, color="tab:orange", label="b, which only hears of it")
    above.set_ylabel("keys")
    above.set_title("Writing goes on while the broker is away; the other node falls behind, and catches up")
    above.legend(loc="upper left", frameon=False)
    below.fill_between(times, waiting, color="tab:blue", alpha=0.4)
    below.set_ylabel("events in\na's outbox")
    below.set_xlabel("seconds")
    for axes in (above, below):
        axes.axvspan(*run.outage, color="0.92", zorder=0)
        axes.set_ylim(bottom=0)
    below.annotate("the broker is down", (sum(run.outage) / 2, max(waiting)), ha="center", va="top")
    return drawing
