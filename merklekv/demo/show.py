"""The two ways to run the demo: with keys in a terminal, and as a script that ends by itself.

Under traffic, the script kills a node and starts it again, then stops the broker and starts it again. Then the traffic
ends, and within CONVERGE_S all nodes have to hold the same, and every write that was acknowledged.

A signal only requests the end: the present action is completed, then all processes are ended.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from rich.console import Console
from rich.live import Live

from merklekv.demo.cluster import Cluster
from merklekv.demo.controls import Controls
from merklekv.demo.page import Page, open_in_browser
from merklekv.demo.screen import Picture
from merklekv.demo.script import SCRIPT, Script
from merklekv.exit_codes import EXIT_FAILED, EXIT_OK
from merklekv.harness.process import HarnessError
from merklekv.keys import QUIT, Keys
from merklekv.output import is_terminal

TICK_S: Final = 0.1
DEFAULT_SECONDS: Final = 10.0
START_S: Final = 30.0
CONVERGE_S: Final = 30.0
REPORT_S: Final = 1.0
EVENTS_MAX: Final = 12  # kept for the screen
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def show(seconds: float | None, broker_kind: str, opens_browser: bool) -> int:
    """Runs the demo. Returns the exit status. Raises HarnessError."""
    console = Console(highlight=False, soft_wrap=True)
    with _asked_to_stop() as stopped:
        has_keys = is_terminal(sys.stdin) and is_terminal(sys.stdout) and not console.is_dumb_terminal
        if seconds is None and has_keys:
            return _with_keys(broker_kind, stopped, console, opens_browser)
        return _as_script(seconds or DEFAULT_SECONDS, broker_kind, stopped, console)


def _with_keys(broker_kind: str, stopped: Callable[[], bool], console: Console, opens_browser: bool) -> int:
    happened: deque[str] = deque(maxlen=EVENTS_MAX)
    began = time.monotonic()

    def report(text: str) -> None:
        happened.append(f"{time.monotonic() - began:6.1f} s  {text}")

    with Cluster(broker_kind, report) as cluster:
        controls = Controls(cluster)
        with ExitStack() as stack:
            page = stack.enter_context(Page(cluster, controls, happened))
            console.print(f"the page is at {page.address}")
            if opens_browser:
                open_in_browser(page.address)
            keys = stack.enter_context(Keys())
            screen = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
            pressed = ""
            while not stopped() and QUIT not in pressed:
                controls.act()
                cluster.step()
                page.tell()
                screen.update(Picture(cluster, page.address, happened), refresh=True)
                pressed = keys.wait(TICK_S)
                for key in pressed:
                    controls.press_key(key)
        console.print(cluster.verdict(), markup=False)
    return EXIT_FAILED if cluster.has_lost else EXIT_OK


def _as_script(seconds: float, broker_kind: str, stopped: Callable[[], bool], console: Console) -> int:
    happened: deque[str] = deque(maxlen=EVENTS_MAX)
    began = time.monotonic()

    def report(text: str) -> None:
        happened.append(f"{time.monotonic() - began:6.1f} s  {text}")
        console.print(happened[-1], markup=False)

    def until(done: Callable[[], bool], deadline: float) -> bool:
        """Steps until `done`, the deadline, or a stop. Returns `done()`."""
        reported = time.monotonic()
        while not done() and not stopped():
            time.sleep(TICK_S)
            controls.act()
            cluster.step()
            page.tell()
            now = time.monotonic()
            if now - reported >= REPORT_S:
                reported = now
                console.print(f"{now - began:6.1f} s  {cluster.verdict()}", markup=False)
            if now >= deadline:
                break
        return done()

    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(broker_kind, report))
        controls = Controls(cluster)
        page = stack.enter_context(Page(cluster, controls, happened))
        report(f"the page is at {page.address}")
        if not until(lambda: cluster.is_equal, began + START_S) and not stopped():
            raise HarnessError(f"the nodes are not equal {START_S:.0f} s after their start: {cluster.differences()}")
        controls.begin(Script(time.monotonic(), seconds, SCRIPT))
        until(lambda: not controls.is_showing, float("inf"))
        if stopped():
            report("interrupted")
            return EXIT_FAILED
        cluster.write(False)
        is_settled = until(lambda: cluster.is_settled, time.monotonic() + CONVERGE_S)
        report(cluster.verdict())
    return EXIT_OK if is_settled and not cluster.has_lost else EXIT_FAILED


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
