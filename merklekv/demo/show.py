"""The two ways to run the demo: with keys in a terminal, and as a script that ends by itself.

Under traffic, the script kills a node and starts it again, then stops the broker and starts it again. Then the traffic
ends, and within CONVERGE_S all nodes have to hold the same.

A signal only requests the end: the present action is completed, then all processes are ended.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.live import Live

from merklekv.demo.cluster import NODES, Cluster
from merklekv.demo.screen import picture
from merklekv.exit_codes import EXIT_FAILED, EXIT_OK
from merklekv.harness.process import HarnessError
from merklekv.keys import QUIT, Keys
from merklekv.output import counted

TICK_S: Final = 0.1
DEFAULT_SECONDS: Final = 10.0
START_S: Final = 30.0
CONVERGE_S: Final = 30.0
REPORT_S: Final = 1.0
EVENTS_MAX: Final = 6  # shown on the screen
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Step = tuple[float, Callable[[Cluster], None]]

# The actions, each with its time as a share of the whole.
SCRIPT: Final[tuple[Step, ...]] = (
    (0.15, lambda cluster: cluster.toggle_node(cluster.nodes[1])),
    (0.40, lambda cluster: cluster.toggle_node(cluster.nodes[1])),
    (0.55, lambda cluster: cluster.toggle_broker()),
    (0.80, lambda cluster: cluster.toggle_broker()),
)


def show(seconds: float | None, broker_kind: str) -> int:
    """Runs the demo. Returns the exit status. Raises HarnessError."""
    console = Console(highlight=False, soft_wrap=True)
    with _asked_to_stop() as stopped:
        if seconds is None and sys.stdin.isatty() and sys.stdout.isatty() and not console.is_dumb_terminal:
            return _with_keys(broker_kind, stopped)
        return _as_script(seconds or DEFAULT_SECONDS, broker_kind, stopped, console)


def _with_keys(broker_kind: str, stopped: Callable[[], bool]) -> int:
    happened: deque[str] = deque(maxlen=EVENTS_MAX)
    began = time.monotonic()

    def report(text: str) -> None:
        happened.append(f"{time.monotonic() - began:6.1f} s  {text}")

    with Cluster(broker_kind, report) as cluster, Keys() as keys, Live(auto_refresh=False) as live:
        while not stopped():
            cluster.step()
            live.update(picture(cluster, happened), refresh=True)
            for key in keys.wait(TICK_S):
                if key == QUIT:
                    return EXIT_OK
                _press(cluster, key)
    return EXIT_OK


def _press(cluster: Cluster, key: str) -> None:
    if key == "b":
        cluster.toggle_broker()
    elif key == "t":
        cluster.toggle_traffic()
    elif key in "123"[:NODES]:
        cluster.toggle_node(cluster.nodes[int(key) - 1])


def _as_script(seconds: float, broker_kind: str, stopped: Callable[[], bool], console: Console) -> int:
    began = time.monotonic()

    def report(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {text}", markup=False)

    def until(deadline: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Steps until `done`, the deadline, or a stop. Returns `done()`.

        Steps at least once, so that the effect of the previous action is observed and printed before the next.
        """
        reported = time.monotonic()
        while not done() and not stopped():
            time.sleep(TICK_S)
            cluster.step()
            now = time.monotonic()
            if now - reported >= REPORT_S:
                reported = now
                report(f"{cluster.verdict()} ({cluster.differences()})" if cluster.all_online else cluster.verdict())
            if now >= deadline:
                break
        return done()

    with Cluster(broker_kind, report) as cluster:
        if not until(began + START_S, lambda: cluster.all_online) and not stopped():
            raise HarnessError(f"the nodes do not find each other after {START_S:.0f} s: {cluster.differences()}")
        met = time.monotonic()
        for share, act in SCRIPT:
            until(met + share * seconds)
            if stopped():
                break
            act(cluster)
        until(met + seconds)
        if stopped():
            report("interrupted")
            return EXIT_FAILED
        cluster.toggle_traffic()
        cluster.step()  # or the observation would be older than the last writes
        healed = until(time.monotonic() + CONVERGE_S, lambda: cluster.is_converged)
        report(f"{counted(cluster.written, 'write')}; {cluster.verdict()} ({cluster.differences()})")
    return EXIT_OK if healed else EXIT_FAILED


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """A function that returns whether a signal has requested the end."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in STOP_SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
