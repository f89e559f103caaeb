"""A full disk: writers get an error, readers go on, nothing acknowledged is lost, and space alone makes it well again.

On a small tmpfs, filled up beside the node's files. Mounting one takes root, or sudo without a password.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.crash_harness import LARGE_VALUE, LARGE_VALUES, SMALL_MEMTABLE, Victim, takes_writes, wait_until_merged
from fixtures.node import NodeFactory
from fixtures.small_disk import Disk
from fixtures.support import wait_until

from merklekv.engine.checkpoint import compactor, space
from merklekv.engine.headroom import RESERVE_FILE
from merklekv.errors import DiskFull
from merklekv.exit_codes import EXIT_UNWRITABLE
from merklekv.net.client import Client, NodeError

FILLINGS_MAX = 30
REFUSALS = 60
WRITES = 1500
NO_ROOM = "disk full|No space left on device"
SMALL_WRITES = 500
LONG_KEYS = 600  # their deletions take more than the file of the log has room for
DELETIONS = 20  # until what they have freed is taken away


@pytest.mark.parametrize("durability", ["always", "everysec"])
def test_a_full_disk(durability: str, disk: Disk, node_factory: NodeFactory, tmp_path: Path, crash_seed: str) -> None:
    data = disk.path / "data"
    node = node_factory(*SMALL_MEMTABLE, "--durability", durability, start=False, directory=data)
    victim = Victim(node, crash_seed, tmp_path)
    victim.start()
    victim.write(WRITES)
    victim.check_keys()

    write_until_full(victim, disk)
    victim.check_keys()  # reads go on
    write_until_full(victim, disk)
    victim.check_keys()
    disk.free()
    victim.write_again(WRITES)

    write_until_full(victim, disk)
    node.kill()
    assert victim.gone() == -signal.SIGKILL
    victim.recover()  # starts, and reads, on the full disk
    write_until_full(victim, disk)
    victim.check_keys()
    disk.free()
    victim.write_again(WRITES)
    victim.stop()


def test_a_start_without_room_for_a_note(
    disk: Disk, node_factory: NodeFactory, tmp_path: Path, crash_seed: str
) -> None:
    """The log is full to the last bytes: the node starts and reads, and notes its start when there is room."""
    node = node_factory(start=False, directory=disk.path / "data")
    victim = Victim(node, crash_seed, tmp_path)
    victim.start()
    with victim.connect() as client:
        for number in range(LONG_KEYS):
            key = b"c0:long:%0450d" % number
            client.call(b"SET", key, b"x")
            victim.models[0][key] = b"x"
    write_until_full(victim, disk)
    victim.check_keys()
    with victim.connect() as client:
        wait_until(lambda: uses_up_the_rest(client, disk), what="the last bytes to be used up")
        victim.models[0][b"c0:text:0"] = b"x"
        use_up_the_reserve(victim, disk, client)
    for _ in range(2):
        node.kill()
        victim.gone()
        victim.recover()
        with victim.connect() as client:
            assert not takes_writes(client)
    node.kill()
    victim.gone()
    renamed = node_factory("--node-id", "another", start=False, directory=node.directory)
    assert renamed.launch().wait(60) == EXIT_UNWRITABLE  # a node has to store its id before others learn it
    assert f"{node.directory}: disk full, write not stored, so it cannot begin as node another" in renamed.output()
    victim.recover()
    disk.free()
    victim.write_again(WRITES)
    victim.stop()


def uses_up_the_rest(client: Client, disk: Disk) -> bool:
    """Writes into what the log has reserved, which may have room for more than a thousand; whether it is used up."""
    disk.fill()  # what a checkpoint has given back
    return not all(takes_writes(client) for _ in range(SMALL_WRITES))


def use_up_the_reserve(victim: Victim, disk: Disk, client: Client) -> None:
    """Takes away what is kept for deletions, and then deletes until the log is full to the last bytes."""
    (victim.node.directory / "log" / RESERVE_FILE).unlink(missing_ok=True)
    for number, key in enumerate(list(victim.models[0])):
        if number % DELETIONS == 0:
            disk.fill()
        try:
            client.call(b"DEL", key)
        except NodeError as refusal:
            if "disk full" not in str(refusal):
                raise
            return
        del victim.models[0][key]
    raise AssertionError(f"never full: {victim.node.output()}")


def write_until_full(victim: Victim, disk: Disk) -> None:
    """Writes until many writes are refused, each with the reason. What a checkpoint gives back is taken away again."""
    for _ in range(FILLINGS_MAX):
        disk.fill()
        clients = victim.write(WRITES, refusals=REFUSALS)
        refusals = [refusal for client in clients for refusal in client.refused]
        assert all("disk full" in refusal for refusal in refusals), set(refusals)
        if len(refusals) >= REFUSALS:
            return
        victim.check_keys()
    raise AssertionError(f"never full: {victim.node.output()}")


def test_a_truncation_empties_a_full_disk(
    disk: Disk, node_factory: NodeFactory, tmp_path: Path, crash_seed: str
) -> None:
    """The node's own data fill it, and something else takes what is left."""
    node = node_factory(*SMALL_MEMTABLE, start=False, directory=disk.path / "data")
    victim = Victim(node, crash_seed, tmp_path)
    victim.start()
    with victim.connect() as client:
        for number in range(LARGE_VALUES):
            client.call(b"SET", b"c0:large:%d" % number, bytes(LARGE_VALUE))
    wait_until_merged(node)  # a checkpoint that finds no room gives up what is kept for it, and that is free then
    disk.fill(1 << 20)
    free = disk.room
    victim.truncate()
    wait_until(lambda: disk.room > free + LARGE_VALUES * LARGE_VALUE // 2, what="the space to be back")
    disk.free()
    victim.write_again(WRITES)
    victim.stop()


@pytest.mark.parametrize("spare", [0, 1 << 18])
def test_a_compaction_that_finds_no_room_changes_nothing(
    spare: int, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs fill the disk after it has looked."""
    with engines.engine_in(disk.path / "data", memtable_size=8 << 20) as engine:
        for number in range(4000):
            engine.set(b"%06d" % number, bytes(1000))
        engines.checkpoint(engine)
        for number in range(0, 4000, 3):
            engine.set(b"%06d" % number, b"")
            engine.delete(b"%06d" % (number + 1))
        expected = engines.everything(engine)
        monkeypatch.setattr(compactor, "require_room", lambda base: disk.fill(spare))
        monkeypatch.setattr(space, "SMALLEST", 0)
        with pytest.raises((DiskFull, OSError), match=NO_ROOM):
            engine.checkpointer.compact_base()
        assert not engine.directory.new_base.exists()
        disk.free()
        assert engines.everything(engine) == expected
        monkeypatch.setattr(compactor, "require_room", lambda base: None)
        engine.compact_now(lambda done, total: None)
        assert engines.everything(engine) == expected
