"""The demo's broker and nodes in a temporary directory, with traffic from the demo itself.

`step` observes every node, then sends some writes to each that is up. In this order, the writes have the time until the
next step to reach all nodes.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from merklekv.demo.guard import Guard, remove
from merklekv.demo.part import BrokerPart, NodePart, Request
from merklekv.harness.broker import make_broker
from merklekv.harness.process import HarnessError
from merklekv.output import counted

NODES: Final = 3
BROKER: Final = "broker"
WRITES_PER_STEP: Final = 10  # on each node
KEYS: Final = 400
COUNTERS: Final = 20
VALUE_BYTES: Final = 40
DELETES_SHARE: Final = 0.1
INCREMENTS_SHARE: Final = 0.1
STUCK_S: Final = 5.0  # without a change


class Cluster:
    """The processes of the demo, for a `with` block."""

    def __init__(self, broker_kind: str, report: Callable[[str], None]) -> None:
        self._report = report  # prints an event
        self.writing = True
        self.written = 0  # writes that were acknowledged
        self.all_online = False  # each node knows each other: from then on no event is missed
        self._directory = Path(tempfile.mkdtemp(prefix="merklekv-demo-"))
        self._random = random.Random()
        self.states: dict[str, str] = {}  # of the broker and the nodes, by name
        self._picture: object = None
        self._changed_at = time.monotonic()
        self._guard = Guard(self._directory)
        try:
            self.broker = BrokerPart(BROKER, make_broker(broker_kind, self._directory))
        except BaseException:
            self._remove()
            raise
        self.nodes = [
            NodePart(f"node-{number}", self._directory, self.broker.process.port) for number in range(1, NODES + 1)
        ]

    def __enter__(self) -> Cluster:
        try:
            self._start(self.broker)
            for node in self.nodes:
                self._start(node)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def step(self) -> None:
        """Observes, then writes. Raises HarnessError if a process ended before the nodes met."""
        for node in self.nodes:
            node.observe()
        self._report_changes()
        views = [node.view for node in self.nodes]
        self.all_online = self.all_online or all(view is not None and view.nodes == NODES for view in views)
        if self.all_online and self.writing:
            for node in self.nodes:
                self.written += len(node.ask(self._traffic()))
        picture = [view and (view.root, view.outbox, view.connection) for view in views]
        if picture != self._picture:
            self._picture, self._changed_at = picture, time.monotonic()

    # -- actions of the viewer or the script ---------------------------------------------------------------------------

    def toggle_node(self, node: NodePart) -> None:
        if node.process.is_running:
            self._report(f"kill -9 {node.process.pid}: {node.name}, while others write")
            node.kill()
        else:
            self._report(f"starting {node.name} on what it has on disk")
            self._start(node)

    def toggle_broker(self) -> None:
        broker = self.broker
        if broker.is_wanted and broker.process.is_running:
            self._report(f"stopping the broker ({broker.process.pause_word}): what is written waits in the outboxes")
            broker.stop()
        else:
            self._report("starting the broker")
            self._start(broker)

    def toggle_traffic(self) -> None:
        self.writing = not self.writing
        self._report("writing goes on" if self.writing else "writing is paused")

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def is_converged(self) -> bool:
        """Whether all nodes are up and hold the same, and nothing is on its way."""
        contents = {node.view and (node.view.root, node.view.keys, node.view.outbox) for node in self.nodes}
        return self.all_online and len(contents) == 1 and all(content and not content[2] for content in contents)

    def verdict(self) -> str:
        """The state in one line."""
        missing = [f"{name} is {state}" for name, state in self.states.items() if state != "up"]
        if self.is_converged:
            return "converged: all nodes hold the same"
        if missing:
            return f"not converged: {', '.join(missing)}"
        if not self.all_online:
            return "starting: the nodes do not know each other yet"
        if time.monotonic() - self._changed_at > STUCK_S:
            return f"diverged: {self.differences()}"
        return "converging"

    def differences(self) -> str:
        """The content of each node in short."""
        shown = []
        for node in self.nodes:
            view = node.view
            content = (
                f"{counted(view.keys, 'key')}, root {view.root[:12]}, outbox {view.outbox}" if view else node.state
            )
            shown.append(f"{node.name}: {content}")
        return " | ".join(shown)

    def _report_changes(self) -> None:
        parts: list[NodePart | BrokerPart] = [*self.nodes, self.broker]
        for part in parts:
            state = part.state
            if self.states.get(part.name) == state:
                continue
            last_words = part.process.last_words() if state == "dead" else ""
            if last_words and not self.all_online:
                raise HarnessError(f"{part.name} did not start: {last_words}")
            self.states[part.name] = state
            self._report(f"{part.name} is {state}" + (f": {last_words}" if last_words else ""))

    def _traffic(self) -> list[Request]:
        """Some writes; with few keys, so that nodes overwrite each other's values."""
        draw = self._random
        requests: list[Request] = []
        for _ in range(WRITES_PER_STEP):
            key, kind = b"key:%d" % draw.randrange(KEYS), draw.random()
            if kind < DELETES_SHARE:
                requests.append((b"DEL", key))
            elif kind < DELETES_SHARE + INCREMENTS_SHARE:
                requests.append((b"INCR", b"counter:%d" % draw.randrange(COUNTERS)))
            else:
                requests.append((b"SET", key, draw.randbytes(VALUE_BYTES // 2).hex().encode()))
        return requests

    def _start(self, part: NodePart | BrokerPart) -> None:
        part.start()
        self._guard.watch(part.process.pid)

    def _end(self) -> None:
        for node in self.nodes:
            node.kill()
        self.broker.process.kill()
        self._remove()

    def _remove(self) -> None:
        removed = remove(self._directory)
        self._guard.dismiss()
        if not removed:
            raise HarnessError(f"{self._directory} could not be removed; nothing uses it any more, so remove it")
