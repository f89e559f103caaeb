"""The demo's broker and nodes in a temporary directory, with traffic from the demo itself.

`step` observes every node, then writes a burst to each that is up. In this order, the writes have the time until the
next step to reach all nodes. When all nodes are seen to hold the same, each is asked for every key in the account.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from merklekv.demo.health import Health, State
from merklekv.demo.part import AnyPart, BrokerPart, NodePart, View
from merklekv.demo.writer import Writer
from merklekv.harness.broker import make_broker
from merklekv.harness.guard import Guard, remove
from merklekv.harness.process import HarnessError
from merklekv.output import counted, listed
from merklekv.web.differences import differing

NODES: Final = 3
BROKER: Final = "broker"
CONNECTED: Final = "connected"
CHECK_S: Final = 1.0  # between two checks of the account while all is well
OUTBOX_SOON_EMPTY: Final = 100  # events
BREATH_S: Final = 0.5  # writing waits for at most so long until all nodes hold the same


class Check(NamedTuple):
    """Of the account, with what the nodes held when all held the same."""

    at: float  # monotonic
    acknowledged: int  # writes until then
    lost: Sequence[bytes]  # keys whose last acknowledged write some node lacks


class Cluster:
    """The processes of the demo, for a `with` block."""

    def __init__(self, broker_kind: str, report: Callable[[str], None]) -> None:
        self._report = report  # prints an event
        self.writing = True
        self.all_online = False  # each node knows each other: from then on no event is missed
        self.health = Health()
        self.check: Check | None = None  # the latest
        self.states: dict[str, str] = {}  # of the broker and the nodes, by name
        self.shown: dict[str, View | None] = {}  # by node: as it is; while all is well, as it was at the latest check
        self.differing: dict[str, list[int]] = {}  # by node, also one that is down: parts of the Merkle tree
        self._digests: dict[str, list[bytes]] = {}  # of inner nodes, by node: those seen last
        self._wrote_at = 0.0
        self._directory = Path(tempfile.mkdtemp(prefix="merklekv-demo-"))
        self._guard = Guard(self._directory)
        try:
            self.broker = BrokerPart(BROKER, make_broker(broker_kind, self._directory))
        except BaseException:
            self._remove()
            raise
        self.nodes = [
            NodePart(f"node-{number}", self._directory, self.broker.process.port) for number in range(1, NODES + 1)
        ]
        self.writers = [Writer(node) for node in self.nodes]

    def __enter__(self) -> Cluster:
        try:
            for part in self.parts:
                self._start(part)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @property
    def parts(self) -> list[AnyPart]:
        return [self.broker, *self.nodes]

    @property
    def acknowledged(self) -> int:
        """Writes in the account."""
        return sum(writer.account.acknowledged for writer in self.writers)

    def step(self) -> None:
        """Observes, then writes. Raises HarnessError if a process ended before the nodes met."""
        for node in self.nodes:
            node.observe()
        self._report_changes()
        self._see()
        self._see_differences()
        if self.all_online and self.writing and not self._waits_for_equality():
            for writer in self.writers:
                writer.write()
            self._wrote_at = time.monotonic()

    # -- actions of the viewer or the script ---------------------------------------------------------------------------

    def stop(self, part: AnyPart) -> None:
        if isinstance(part, NodePart):
            self._report(f"kill -9 {part.process.pid}: {part.name}, while others write")
        else:
            self._report(f"stopping the broker ({part.process.pause_word}): what is written waits in the outboxes")
        part.stop()

    def start(self, part: AnyPart) -> None:
        self._report(f"starting {part.name} on what it has on disk" if part in self.nodes else "starting the broker")
        self._start(part)

    def write(self, writing: bool) -> None:
        """Writes from now on, or pauses."""
        self.writing = writing
        self._report("writing goes on" if writing else "writing is paused")

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def is_equal(self) -> bool:
        """Whether all processes run, all nodes hold the same, and nothing is on its way."""
        views = [node.view for node in self.nodes]
        contents = {view and (view.root, view.keys, view.outbox, view.connection) for view in views}
        return (
            self.all_online
            and all(state == "up" for state in self.states.values())
            and len(contents) == 1
            and all(view is not None and not view.outbox and view.connection == CONNECTED for view in views)
        )

    def verdict(self) -> str:
        """The state in one sentence."""
        state, health = self.health.state, self.health
        waiting = sum(node.view.outbox for node in self.nodes if node.view)
        if not self.all_online:
            return "Starting: the nodes do not know each other yet"
        if state is State.EQUAL:
            healed = f", healed in {health.healed_s:.1f} s" if health.healed_s is not None else ""
            return f"All equal, {self.account()}{healed}"
        if state is State.OUTAGE:
            writes = self.acknowledged
            if self.broker.is_there:
                return f"{self._away()}: {counted(writes, 'acknowledged write')} so far"
            return f"{self._away()}: {waiting:,} of {counted(writes, 'write')} wait in outboxes"
        if health.is_stuck:
            return f"Diverged: {self.differences()}"
        if state is State.HEALING:
            return f"Healing for {health.healing_s:.1f} s: {counted(waiting, 'event')} in outboxes"
        return "Converging"

    def _away(self) -> str:
        """What does not run, and since the broker comes first, a sentence begins with it or with the name of a node."""
        away: dict[str, list[str]] = {}
        for part in self.parts:
            if not part.is_there:
                away.setdefault(part.state, []).append("The broker" if part is self.broker else part.name)
        clauses = [f"{listed(names)} {'is' if len(names) == 1 else 'are'} {state}" for state, names in away.items()]
        return ", ".join(clauses)

    def account(self) -> str:
        """What is lost of the acknowledged writes, by the latest check."""
        if self.check is None:
            return f"{counted(self.acknowledged, 'acknowledged write')}"
        lost = self.check.lost
        named = f": {', '.join(key.decode() for key in lost[:3])}" if lost else ""
        return f"{len(lost):,} of {counted(self.check.acknowledged, 'acknowledged write')} lost{named}"

    @property
    def is_settled(self) -> bool:
        """Whether all nodes hold the same, and every write is checked, since none came after the check."""
        return self.is_equal and self.check is not None and self.check.at > self._wrote_at

    @property
    def has_lost(self) -> bool:
        """Whether the latest check found a loss."""
        return self.check is not None and bool(self.check.lost)

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
        for part in self.parts:
            state = part.state
            if self.states.get(part.name) == state:
                continue
            last_words = part.process.last_words() if state == "dead" else ""
            if last_words and not self.all_online:
                raise HarnessError(f"{part.name} did not start: {last_words}")
            self.states[part.name] = state
            self._report(f"{part.name} is {state}" + (f": {last_words}" if last_words else ""))

    def _see(self) -> None:
        views = [node.view for node in self.nodes]
        self.all_online = self.all_online or all(view is not None and view.nodes == NODES for view in views)
        before, is_equal, now = self.health.state, self.is_equal, time.monotonic()
        self.health.see(
            now,
            runs=all(part.is_there for part in self.parts),
            started_at=max(part.started_at for part in self.parts),
            are_equal=is_equal,
            seen=[view and (view.root, view.outbox, view.connection) for view in views],
        )
        has_healed = is_equal and before in (State.OUTAGE, State.HEALING)
        is_checked = is_equal and (has_healed or self._is_check_due(now))
        if is_checked:
            self.check = self._checked(now)
            self._digests = dict.fromkeys((node.name for node in self.nodes), self.nodes[0].digests())
        if is_checked or self.health.state is not State.EQUAL:
            self.shown = {node.name: node.view for node in self.nodes}
        if has_healed:
            self._report(self.verdict())

    def _checked(self, now: float) -> Check | None:
        """The result of a check at this time; the latest one if a node is gone just now."""
        lost: set[bytes] = set()
        for node in self.nodes:
            for writer in self.writers:
                missing = writer.lost_at(node)
                if missing is None:
                    return self.check
                lost.update(missing)
        return Check(now, self.acknowledged, sorted(lost))

    def _see_differences(self) -> None:
        """Where the nodes differ, while they do; what a node that is down held is known from before."""
        if self.health.state is State.EQUAL:
            self.differing = {name: [] for name in self._digests}
        elif self.all_online:
            self._digests |= {node.name: node.digests() for node in self.nodes if node.view}
            self.differing = differing(self._digests)

    def _is_check_due(self, now: float) -> bool:
        if self.check is None or now - self.check.at > CHECK_S:
            return True
        return not self.writing and self.check.at < self._wrote_at

    def _waits_for_equality(self) -> bool:
        """Writing takes a breath when all is well, or nearly, and the last burst has not arrived yet."""
        if self.is_equal or time.monotonic() - self._wrote_at > BREATH_S:
            return False
        views = [node.view for node in self.nodes]
        return self.health.state is not State.OUTAGE and all(
            view is not None and view.connection == CONNECTED and view.outbox < OUTBOX_SOON_EMPTY for view in views
        )

    def _start(self, part: AnyPart) -> None:
        part.start()
        self._guard.watch(part.process.pid)

    def _end(self) -> None:
        for node in self.nodes:
            node.stop()
        self.broker.process.kill()
        self._remove()

    def _remove(self) -> None:
        removed = remove(self._directory)
        self._guard.dismiss()
        if not removed:
            raise HarnessError(f"{self._directory} could not be removed; nothing uses it any more, so remove it")
