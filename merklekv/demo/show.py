"""The two ways to run the demo: with keys in a terminal, and as a script that ends by itself.

The script kills a node and starts it again, then stops the broker and starts it again, all under traffic; then traffic
ends, and within SETTLE_S all nodes have to hold the same.

Signals only ask for the end: whatever is being done is done, and then everything that was started is ended.
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
from merklekv.demo.screen import Keys, picture
from merklekv.exit_codes import EXIT_FAILED, EXIT_OK
from merklekv.harness.process import HarnessError
from merklekv.output import counted

TICK_S: Final = 0.1
DEFAULT_SECONDS: Final = 10.0
START_S: Final = 30.0
SETTLE_S: Final = 30.0
REPORT_S: Final = 1.0
HAPPENED_MAX: Final = 6  # lines of the past on the screen
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Step = tuple[float, Callable[[Cluster], None]]

# When, as a share of the time, and what.
SCRIPT: Final[tuple[Step, ...]] = (
    (0.15, lambda cluster: cluster.toggle_node(cluster.nodes[1])),
    (0.40, lambda cluster: cluster.toggle_node(cluster.nodes[1])),
    (0.55, lambda cluster: cluster.toggle_broker()),
    (0.80, lambda cluster: cluster.toggle_broker()),
)


def show(seconds: float | None, broker_kind: str) -> int:
    """Runs the demo; the exit status. Raises HarnessError."""
    console = Console(highlight=False, soft_wrap=True)
    with _asked_to_stop() as stopped:
        if seconds is None and sys.stdin.isatty() and sys.stdout.isatty() and not console.is_dumb_terminal:
            return _with_keys(broker_kind, stopped)
        return _as_script(seconds or DEFAULT_SECONDS, broker_kind, stopped, console)


def _with_keys(broker_kind: str, stopped: Callable[[], bool]) -> int:
    happened: deque[str] = deque(maxlen=HAPPENED_MAX)
    began = time.monotonic()

    def tell(text: str) -> None:
        happened.append(f"{time.monotonic() - began:6.1f} s  {text}")

    with Cluster(broker_kind, tell) as cluster, Keys() as keys, Live(auto_refresh=False) as live:
        while not stopped():
            cluster.step()
            live.update(picture(cluster, happened), refresh=True)
            for key in keys.wait(TICK_S):
                if key == "q":
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

    def tell(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {text}", markup=False)

    def until(deadline: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Goes on until something is so, or the time has come, or a stop was asked for: whether it is so.

        Goes on by one round at least: what was done before is seen, and told, before something else is done.
        """
        reported = time.monotonic()
        while not done() and not stopped():
            time.sleep(TICK_S)
            cluster.step()
            now = time.monotonic()
            if now - reported >= REPORT_S:
                reported = now
                tell(f"{cluster.verdict()} ({cluster.differences()})" if cluster.met else cluster.verdict())
            if now >= deadline:
                break
        return done()

    with Cluster(broker_kind, tell) as cluster:
        if not until(began + START_S, lambda: cluster.met) and not stopped():
            raise HarnessError(f"the nodes do not hear each other after {START_S:.0f} s: {cluster.differences()}")
        met = time.monotonic()
        for share, act in SCRIPT:
            until(met + share * seconds)
            if stopped():
                break
            act(cluster)
        until(met + seconds)
        if stopped():
            tell("interrupted")
            return EXIT_FAILED
        cluster.toggle_traffic()
        cluster.step()  # or the look would be older than the last writes
        healed = until(time.monotonic() + SETTLE_S, lambda: cluster.is_converged)
        tell(f"{counted(cluster.written, 'write')}; {cluster.verdict()} ({cluster.differences()})")
    return EXIT_OK if healed else EXIT_FAILED


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether a signal has asked for the end."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in STOP_SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
