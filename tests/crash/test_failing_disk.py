"""A disk that fails a write or a sync: the process stops and says so, because what the kernel holds is unknown.

libfiu makes the calls fail, in the node or in its checkpoint process, from any moment on (`fiu-run`, `fiu-ctrl`). What
had been acknowledged is there after the next start; what failed was not acknowledged.

A write that fails for lack of room, although room was reserved for it (btrfs, ZFS, thin volumes), stops nothing: it is
not stored, and clients are told so.
"""

from __future__ import annotations

import errno
import re
import signal
import subprocess
from pathlib import Path

import pytest
from fixtures.crash_harness import SMALL_MEMTABLE, Victim
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import wait_until

from merklekv.exit_codes import EXIT_STORAGE

REFUSALS = 60
WRITES = 1500
WRITE = "posix/io/rw/pwrite"  # of the log: nothing else is written by this call in the node
SYNC = "posix/io/sync/fdatasync"  # of the log by the node, of the base by its child
FAULTS = [
    pytest.param("always", "node", SYNC, 1, "cannot sync", id="always-commit"),
    pytest.param("always", "node", SYNC, 0.02, "cannot sync", id="always-some-commit"),
    pytest.param("always", "node", WRITE, 0.02, "cannot", id="always-write"),
    pytest.param("always", "node", "posix/io/sync/fsync", 1, "cannot", id="always-rotation"),
    pytest.param("always", "child", SYNC, 1, "LMDB failed", id="always-merge"),
    pytest.param("everysec", "node", SYNC, 1, "cannot sync", id="everysec-sync"),
    pytest.param("everysec", "node", WRITE, 0.02, "cannot", id="everysec-write"),
    pytest.param("everysec", "child", SYNC, 1, "LMDB failed", id="everysec-merge"),
]


class FailingVictim(Victim):
    """A node whose system calls can be made to fail while it runs."""

    def __init__(self, node: NodeProcess, seed: str, keep: Path) -> None:
        self._control = keep / "fiu"
        node.wrapper = ["fiu-run", "-x", "-f", str(self._control)]
        super().__init__(node, seed, keep)

    def fail(self, pid: int, calls: str, probability: float, error: int = errno.EIO) -> None:
        """From now on, those calls of that process fail with that probability."""
        self._tell(pid, f"enable_random name={calls},probability={probability},failinfo={error}")

    def mend(self, pid: int, calls: str) -> None:
        """From now on, those calls of that process work again."""
        self._tell(pid, f"disable name={calls}")

    def _tell(self, pid: int, command: str) -> None:
        wait_until(Path(f"{self._control}-{pid}.out").is_fifo, what="the process to listen")
        done = subprocess.run(
            ["fiu-ctrl", "-f", self._control, "-c", command, str(pid)],
            check=True,
            timeout=60,
            capture_output=True,
            text=True,
        )
        assert not done.stdout, done.stdout

    def recover(self) -> None:
        self.node.wrapper = ["setsid"]
        super().recover()


@pytest.mark.parametrize(("durability", "process", "calls", "probability", "words"), FAULTS)
def test_the_process_stops_rather_than_lie(
    durability: str,
    process: str,
    calls: str,
    probability: float,
    words: str,
    node_factory: NodeFactory,
    tmp_path: Path,
    crash_seed: str,
) -> None:
    node = node_factory(*SMALL_MEMTABLE, "--durability", durability, start=False)
    victim = FailingVictim(node, crash_seed, tmp_path)
    victim.start()
    victim.write(1000)
    victim.check_keys()
    child = wait_until(victim.children, what="the checkpoint process")[0]
    victim.fail(node.pid if process == "node" else child, calls, probability)
    clients = victim.write(1 << 30)
    assert victim.gone() == EXIT_STORAGE, node.output()
    assert re.search(f"CRITICAL .*{words}.*stopping", node.output())
    if (durability, calls, probability) == ("always", SYNC, 1) and process == "node":
        assert not any(client.stored for client in clients)
    victim.recover()
    victim.stop()


def test_a_failed_sync_stops_the_process_even_when_nobody_asks(node_factory: NodeFactory, tmp_path: Path) -> None:
    node = node_factory("--durability", "everysec", start=False)
    victim = FailingVictim(node, "silent", tmp_path)
    victim.start()
    victim.fail(node.pid, SYNC, 1)
    victim.write(1)
    assert victim.gone() == EXIT_STORAGE
    victim.recover()
    victim.stop()


def test_writes_that_are_cut_short_are_written_to_their_end(node_factory: NodeFactory, tmp_path: Path) -> None:
    node = node_factory(*SMALL_MEMTABLE, start=False)
    victim = FailingVictim(node, "short", tmp_path)
    victim.start()
    victim.fail(node.pid, "posix/io/rw/pwrite/reduce", 0.5)
    victim.write(2000, kill=[node.pid])
    assert victim.gone() == -signal.SIGKILL
    victim.recover()
    victim.stop()


@pytest.mark.parametrize("durability", ["always", "everysec", "never"])
def test_no_room_where_room_was_reserved(
    durability: str, node_factory: NodeFactory, tmp_path: Path, crash_seed: str
) -> None:
    node = node_factory(*SMALL_MEMTABLE, "--durability", durability, start=False)
    victim = FailingVictim(node, crash_seed, tmp_path)
    victim.start()
    victim.write(WRITES)
    victim.check_keys()
    for probability in (0.02, 0.5, 1):
        victim.fail(node.pid, WRITE, probability, errno.ENOSPC)
        clients = victim.write(1 << 30, refusals=REFUSALS)
        refusals = {refusal for client in clients for refusal in client.refused}
        assert refusals == {f"127.0.0.1:{node.port}: ERR disk full, write not stored"}
        victim.check_keys()  # reads go on
        victim.mend(node.pid, WRITE)
        victim.write_again(WRITES)
        wait_until(lambda: "there is room again, writes are stored" in node.output(), what="the log line")
    victim.fail(node.pid, WRITE, 1, errno.ENOSPC)
    victim.write(1 << 30, refusals=REFUSALS)
    node.kill()
    assert victim.gone() == -signal.SIGKILL
    victim.recover()
    victim.stop()
