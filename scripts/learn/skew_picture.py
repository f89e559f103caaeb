"""A conflict resolved under clock skew: two nodes write the same key without hearing each other, b a minute ahead.

The write that really came later loses, because it has the smaller timestamp; both nodes agree on that. The next write
of a wins, although a's clock is a minute behind: its timestamps follow those that it has received.
"""

import threading
import time
from dataclasses import dataclass, field
from itertools import groupby

from cluster import Cluster, LearnNode
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merklekv.harness.process import wait_until

SKEW_S = 60
KEY = b"k"
LOOK_EVERY_S = 0.02
NOTHING = "nothing"
FIRST, SECOND, THIRD = "first", "second", "third"
COLORS = {NOTHING: "0.93", FIRST: "tab:orange", SECOND: "tab:blue", THIRD: "tab:green"}


@dataclass(frozen=True)
class Look:
    """What a node showed at a moment."""

    at_s: float
    value: str
    stamp_s: float  # of its record, in seconds since the beginning; 0 without one


@dataclass
class Run:
    """What was seen."""

    began: float = field(default_factory=time.time)
    looks: dict[str, list[Look]] = field(default_factory=dict)
    writes: list[tuple[str, str, float]] = field(default_factory=list)  # node, value, when
    outage: list[float] = field(default_factory=list)

    def now(self) -> float:
        return time.time() - self.began

    def look(self, node: LearnNode) -> Look:
        reply = node.ask(b"RECORDS", b"", b"1")
        assert isinstance(reply, list)
        records = reply[1]
        if not records:
            return Look(self.now(), NOTHING, 0.0)
        assert isinstance(records, list)
        _, head, value = records
        assert isinstance(head, bytes)
        assert isinstance(value, bytes)
        return Look(self.now(), value.decode(), int.from_bytes(head[:8], "big") / 1e9 - self.began)


def measure(small: bool) -> Run:
    """The run, in which both nodes are looked at all the time."""
    pause_s = 0.3 if small else 1.0
    with Cluster({"a": 0, "b": SKEW_S}) as cluster:
        a, b = cluster.nodes.values()
        cluster.stop_broker()
        run, pause = Run(), threading.Event()

        def watch(until_s: float) -> None:
            while run.now() < until_s:
                for node in (a, b):
                    run.looks.setdefault(node.name, []).append(run.look(node))
                pause.wait(LOOK_EVERY_S)

        def write(node: LearnNode, value: str) -> None:
            node.ask(b"SET", KEY, value.encode())
            run.writes.append((node.name, value, run.now()))
            watch(run.now() + pause_s)

        def until_both_show(value: str) -> None:
            def both_show() -> bool:
                watch(run.now() + LOOK_EVERY_S)
                return all(looks[-1].value == value for looks in run.looks.values())

            wait_until(both_show, what=f"both to show {value}")
            watch(run.now() + pause_s)

        run.outage.append(run.now())
        watch(pause_s / 2)
        write(b, FIRST)
        write(a, SECOND)
        cluster.start_broker()
        run.outage.append(run.now())
        until_both_show(FIRST)
        write(a, THIRD)
        until_both_show(THIRD)
    return run


def draw(small: bool) -> Figure:
    """Above what each node shows; below the stamps, and the time as all others have it."""
    run = measure(small)
    drawing = Figure(figsize=(8, 4.6), layout="constrained")
    above, below = drawing.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    _lanes(above, run)
    _stamps(below, run)
    return drawing


def _lanes(axes: Axes, run: Run) -> None:
    for lane, name in enumerate(run.looks):
        changes = [next(group) for _, group in groupby(run.looks[name], lambda look: look.value)]
        ends = [*(change.at_s for change in changes[1:]), run.looks[name][-1].at_s]
        for change, end in zip(changes, ends, strict=True):
            axes.barh(lane, end - change.at_s, left=change.at_s, height=0.55, color=COLORS[change.value])
            if change.value != NOTHING:
                axes.text(change.at_s + 0.03, lane, change.value, va="center", color="white", weight="bold")
    for node, _, at in run.writes:
        lane = list(run.looks).index(node)
        axes.annotate("SET", (at, lane - 0.3), (at, lane - 0.62), ha="center", arrowprops={"arrowstyle": "->"})
    axes.axvspan(*run.outage, color="0.92", zorder=0)
    axes.text(sum(run.outage) / 2, 1.4, "no broker", ha="center", va="top", color="0.3")
    axes.set_yticks(range(2), ["a\nclock right", "b\nclock 60 s ahead"])
    axes.set_ylim(1.8, -0.9)
    axes.set_title("What each node shows for the key")


def _stamps(axes: Axes, run: Run) -> None:
    end = run.looks["a"][-1].at_s
    axes.plot([0, end], [0, end], color="0.6", linestyle="--")
    axes.text(end, end + 2, "the true time", ha="right", va="bottom", color="0.4")
    for name, value, at in run.writes:
        stamp = next(look.stamp_s for look in run.looks[name] if look.value == value)
        axes.plot([at], [stamp], "o", color=COLORS[value], markersize=9)
        late = at > 0.6 * end
        told = f"{value}, on {name}: {stamp:+.1f} s"
        axes.text(at, stamp + 6, told, ha="right" if late else "left", va="center")
    axes.axvspan(*run.outage, color="0.92", zorder=0)
    axes.set_ylim(-12, SKEW_S + 12)
    axes.set_xlim(0, end)
    axes.set_ylabel("stamp, seconds")
    axes.set_xlabel("seconds")
    axes.set_title("What the larger stamp decides")
