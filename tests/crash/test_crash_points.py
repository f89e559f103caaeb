"""The process dies at each named moment of rotating, checkpoints and compactions, and again there in the recovery.

`MERKLEKV_TEST_CRASH_AT` arms a point in the node and in its checkpoint process. Where that process dies, the node lives
on and is then killed too.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.crash_harness import SMALL_MEMTABLE, Victim
from fixtures.node import NodeFactory
from fixtures.support import wait_until

from merklekv.engine.failpoints import POINTS
from merklekv.harness.process import READY
from merklekv.net.client import Unreachable

WRITES = 10  # few enough, with few clients, that memory does not fill while the child is dead: then writers would wait
CLIENTS = 3
ROUNDS_MAX = 50
TIMES = 2
OF_CHILD = ("checkpoint.", "compaction.part")
OTHERS = {"checkpoint.truncation_raised"} | {point for point in POINTS if point.startswith("compaction.")}


def run_into(victim: Victim, point: str, before_writing: Callable[[], None]) -> None:
    """Starts the armed node and writes until it, or its child, has died at the point."""
    node = victim.node
    mark = f"crash point {point}\n"
    process = node.launch()
    wait_until(lambda: process.poll() is not None or READY.search(node.output()), what="the node")
    try:
        for _ in range(ROUNDS_MAX):
            if mark in node.output():
                break
            victim.check_keys()
            before_writing()
            victim.write(WRITES, clients=CLIENTS)
    except Unreachable:
        pass  # it died while keys were looked at, in what it still had to do after the start
    assert mark in node.output()
    if point.startswith(OF_CHILD):
        node.kill()
    assert victim.gone() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("point", "before_writing"),
    [
        *((point, lambda victim: None) for point in POINTS if point not in OTHERS),
        *((point, Victim.fill_and_truncate) for point in POINTS if point.startswith("compaction.")),
        pytest.param("checkpoint.truncation_raised", Victim.truncate, id="checkpoint.truncation_raised-all"),
        pytest.param("checkpoint.truncation_raised", Victim.raise_truncation, id="checkpoint.truncation_raised-half"),
    ],
)
def test_nothing_is_lost_at(
    point: str, before_writing: Callable[[Victim], None], node_factory: NodeFactory, tmp_path: Path
) -> None:
    node = node_factory(*SMALL_MEMTABLE, start=False)
    victim = Victim(node, point, tmp_path)
    victim.start()
    victim.write(1000)
    victim.check_keys()
    node.kill()
    node.environment["MERKLEKV_TEST_CRASH_AT"] = point
    for _ in range(TIMES):
        run_into(victim, point, lambda: before_writing(victim))
    del node.environment["MERKLEKV_TEST_CRASH_AT"]
    victim.recover()
    victim.write(1000)
    victim.check_keys()
    victim.stop()


def test_a_child_that_is_always_killed_loses_nothing(node_factory: NodeFactory, tmp_path: Path) -> None:
    """As the kernel does when memory is short: the node serves what it can, and refuses writes when memory is full."""
    node = node_factory(*SMALL_MEMTABLE, start=False, environment={"MERKLEKV_TEST_CRASH_AT": "checkpoint.records_done"})
    victim = Victim(node, "child", tmp_path)
    victim.start()
    clients = victim.write(1 << 30, refusals=50)
    refusals = {reply for client in clients for reply in client.refused}
    assert refusals == {f"127.0.0.1:{node.port}: ERR resource shortage, write not stored"}
    victim.check_keys()
    node.kill()
    del node.environment["MERKLEKV_TEST_CRASH_AT"]
    victim.recover()
    victim.write(1000)
    victim.check_keys()
    victim.stop()
