"""Twenty clients write, the node gets -9 at a random moment and starts again: nothing acknowledged is missing.

Every round goes on with the directory of the round before, so crashes are recovered from crashes. All modes of
durability are held to the same: -9 takes the process, not the kernel, and a reply leaves after its write is there.
"""

from __future__ import annotations

import math
import os
import random
import signal
from pathlib import Path

import pytest
from fixtures.crash_harness import SMALL_MEMTABLE, Victim, is_gone, wait_gone
from fixtures.node import NodeFactory
from fixtures.support import wait_until

from merklekv.harness.process import READY
from merklekv.net.client import Client as Connection

ACKNOWLEDGED_MAX = 3000
KILLED_WHILE_STARTING = 0.3  # of the rounds, after which the next start is killed too
START_S = 0.5
MEMTABLE_SIZES = ("64KiB", "64KiB", "256KiB", "64MiB")
TRUNCATES = 3
TRUNCATE_S = 0.005
CAMPAIGNS = [
    ("always", "server"),
    ("always", "group"),
    ("always", "child"),
    ("everysec", "server"),
    ("never", "group"),
]


@pytest.mark.parametrize(("durability", "target"), CAMPAIGNS)
def test_nothing_acknowledged_is_lost(
    durability: str, target: str, node_factory: NodeFactory, tmp_path: Path, crash_rounds: int, crash_seed: str
) -> None:
    """`target`: the server alone (its child has to end by itself), all processes at once, or first the child alone."""
    node = node_factory(start=False)
    victim = Victim(node, f"{crash_seed}-{durability}-{target}", tmp_path)
    schedule = random.Random(victim.seed)
    for _ in range(math.ceil(crash_rounds / len(CAMPAIGNS))):
        node.flags = ("--durability", durability, "--memtable-size", schedule.choice(MEMTABLE_SIZES))
        if victim.acknowledged:
            victim.recover()
        else:
            victim.start()
        acknowledgements = int(ACKNOWLEDGED_MAX ** schedule.uniform(0.3, 1))
        if target == "child":
            victim.write(acknowledgements)
            victim.check_keys()
            victim.write(acknowledgements, victim.children())
            victim.check_keys()
        victim.write(acknowledgements, [-node.pid if target == "group" else node.pid])
        assert victim.gone() == -signal.SIGKILL
        wait_gone(victim.children())
        if schedule.random() < KILLED_WHILE_STARTING:
            victim.kill_while_starting(schedule.uniform(0, START_S))
    victim.recover()
    victim.stop()


def test_the_next_start_waits_for_the_child_of_a_killed_server(node_factory: NodeFactory, tmp_path: Path) -> None:
    node = node_factory(*SMALL_MEMTABLE, start=False)
    victim = Victim(node, "orphan", tmp_path)
    victim.start()
    victim.write(2000)
    victim.check_keys()
    (child,) = wait_until(victim.children, what="the checkpoint process")
    os.kill(child, signal.SIGSTOP)
    node.kill()
    node.launch()
    wait_until(lambda: _has_open(node.pid, node.directory), what="the next start to come to the lock")
    assert not READY.search(node.output())
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: READY.search(node.output()), what="the ready line")
    assert is_gone(child)
    victim.check_keys()
    victim.stop()


def _has_open(pid: int, directory: Path) -> bool:
    return any(os.path.realpath(fd) == str(directory) for fd in Path(f"/proc/{pid}/fd").iterdir())


def test_a_truncate_is_whole_or_not_there(node_factory: NodeFactory, tmp_path: Path, crash_seed: str) -> None:
    """Killed at any moment after it was sent, a TRUNCATE has removed every key or none; acknowledged, all."""
    node = node_factory(*SMALL_MEMTABLE, start=False)
    victim = Victim(node, f"{crash_seed}-truncate", tmp_path)
    schedule = random.Random(victim.seed)
    victim.start()
    for acknowledged in (True, False, False) * TRUNCATES:
        victim.write(1000)
        victim.check_keys()
        everything = victim.read_all()
        with Connection("127.0.0.1", node.port) as connection:
            connection.send([[b"TRUNCATE"]])
            if acknowledged:
                assert connection.receive() == b"OK"
            victim.kill_after(schedule.uniform(0, TRUNCATE_S))
        victim.models, victim.shared = [{} for _ in victim.models], {}
        victim.recover()
        found = victim.read_all()
        victim.require(not found or (found == everything and not acknowledged), f"{len(found)} keys are left")
    victim.stop()
