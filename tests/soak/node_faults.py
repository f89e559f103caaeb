"""What is done to a node, its networks and its disk; and what is done with it while it works.

node-1 is never ended: what grows in a process for as long as it lives shows there.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fixtures.proxy import Proxy
from fixtures.wall_clock import wall_clock_off_by

from merklekv.exit_codes import EXIT_SLOW_STOP

from .cluster import SoakNode, tool
from .load import Problems

Pause = Callable[[float], None]  # waits for so many seconds, or until the soak ends
Act = Callable[[float, random.Random, Pause], None]

LIVES_ON: Final = "node-1"
CLOCK_OFF_S: Final = 3
SPARE_FDS: Final = 2
FULL_FOR: Final = 3  # times as long as other faults: what is reserved lasts a while
START_MAX_S: Final = 1.0
SHOWN: Final = 2_000  # characters of what a tool says


def acts_on(node: SoakNode, place: Path, problems: Problems, is_timed: bool) -> dict[str, Act]:
    """By their names; `place` is for backups, `is_timed` as for `stop`."""
    faults = _NodeFaults(node, place, problems, is_timed)
    acts: dict[str, Act] = {
        "frozen": faults.freeze,
        "cut off from the broker": lambda *how: _cut(node.to_broker, *how),
        "frozen network to the broker": lambda *how: _freeze_network(node.to_broker, *how),
        "cut off from its peers": lambda *how: _cut(node.from_peers, *how),
        "frozen network from its peers": lambda *how: _freeze_network(node.from_peers, *how),
        "few descriptors": faults.take_descriptors,
        "HUP": faults.reload,
        "backup": faults.back_up,
        "verify": faults.tool_act("verify", node.address),
        "dump": faults.tool_act("dump", node.address, "--output", os.devnull),
        "members": faults.tool_act("members", node.address),
    }
    if node.disk is not None:
        acts["full disk"] = faults.fill_disk
    if node.name != LIVES_ON:
        acts |= {
            "killed": faults.kill,
            "killed in its start": faults.kill_in_start,
            "restarted": faults.restart,
            "wrong clock": faults.put_clock_wrong,
            "compact": faults.compact,
        }
    return acts


def stop(node: SoakNode, problems: Problems, is_timed: bool) -> None:
    """Stops it by SIGTERM. A run that is not timed shares its machine with other tests: there a stop may be slow."""
    status = node.process.stop()
    if status and (is_timed or status != EXIT_SLOW_STOP):
        problems.add(f"{node.name} stopped with exit status {status}: {node.process.last_words()}")


class _NodeFaults:
    def __init__(self, node: SoakNode, place: Path, problems: Problems, is_timed: bool) -> None:
        self._node = node
        self._is_timed = is_timed
        self._process = node.process
        self._backup = place / f"backup-of-{node.name}"
        self._problems = problems

    # -- the process ---------------------------------------------------------------------------------------------------

    def freeze(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        self._process.send_signal(signal.SIGSTOP)
        pause(seconds)
        self._process.send_signal(signal.SIGCONT)

    def kill(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        self._require_running()
        self._process.kill()
        pause(seconds)
        self._process.start()

    def kill_in_start(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        for _ in range(3):
            self._require_running()
            self._process.kill()
            self._process.launch()
            pause(chance.uniform(0, START_MAX_S))
        self._process.kill()
        self._process.start()

    def restart(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        with self._stopped():
            pause(seconds)

    def put_clock_wrong(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        right = self._process.environment
        with self._stopped():
            self._process.environment = right | wall_clock_off_by(chance.choice((CLOCK_OFF_S, -CLOCK_OFF_S)))
        pause(seconds)
        with self._stopped():
            self._process.environment = right

    def compact(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        with self._stopped():
            self.use_tool("compact", str(self._node.directory))
            self.use_tool("verify", str(self._node.directory))

    def reload(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        for _ in range(5):
            self._process.send_signal(signal.SIGHUP)
            pause(seconds / 5)

    # -- what it needs -------------------------------------------------------------------------------------------------

    def fill_disk(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        assert self._node.disk is not None
        self._node.disk.fill(chance.choice((0, 0, 100_000)))
        pause(FULL_FOR * seconds)
        self._node.disk.free()

    def take_descriptors(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        pid = self._process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        open_now = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + SPARE_FDS, hard))
        pause(seconds)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

    # -- tools ---------------------------------------------------------------------------------------------------------

    def back_up(self, seconds: float, chance: random.Random, pause: Pause) -> None:
        source = chance.choice((self._node.address, str(self._node.directory)))
        try:
            if self.use_tool("backup", source, str(self._backup)):
                self.use_tool("verify", str(self._backup))
        finally:
            shutil.rmtree(self._backup, ignore_errors=True)

    def tool_act(self, verb: str, *arguments: str) -> Act:
        def act(seconds: float, chance: random.Random, pause: Pause) -> None:
            self.use_tool(verb, *arguments)

        return act

    def use_tool(self, verb: str, *arguments: str) -> bool:
        """Whether it succeeds; it has to."""
        done = tool(verb, *arguments)
        if done.returncode:
            said = f"{done.stdout[-SHOWN:]}{done.stderr[-SHOWN:]}"
            self._problems.add(f"{verb} {' '.join(arguments)}: exit status {done.returncode}: {said}")
        return not done.returncode

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        """In a block: stopped by SIGTERM; then it is started again."""
        self._require_running()
        stop(self._node, self._problems, self._is_timed)
        yield
        self._process.start()

    def _require_running(self) -> None:
        if not self._process.is_running:
            self._problems.add(f"{self._node.name} has ended by itself: {self._process.last_words()}")


def _cut(proxy: Proxy, seconds: float, chance: random.Random, pause: Pause) -> None:
    proxy.cut()
    pause(seconds)
    proxy.heal()


def _freeze_network(proxy: Proxy, seconds: float, chance: random.Random, pause: Pause) -> None:
    proxy.freeze()
    pause(seconds)
    proxy.thaw()
