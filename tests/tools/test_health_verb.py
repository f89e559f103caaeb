"""`merklekv-tool health`: ready, not ready with the reasons, alive, and not there."""

from __future__ import annotations

import itertools
import json
import signal
from contextlib import suppress

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.small_disk import Disk
from fixtures.support import free_port, wait_until
from fixtures.tools import FakeNode, address, fails, run, succeeds
from merklekv_tool.exit_codes import EXIT_PROBLEMS, EXIT_UNREACHABLE

from merklekv.harness.process import setting_flags
from merklekv.net.client import Client, NodeError


def test_a_node_by_itself_is_ready(node: NodeProcess) -> None:
    assert succeeds("health", address(node)) == b"ready\n"
    assert succeeds("health", address(node), "--live") == b"live\n"
    assert json.loads(succeeds("health", address(node), "--json")) == {"ready": True, "not_ready": {}}


def test_a_node_without_its_broker_is_alive_and_not_ready(node_factory: NodeFactory) -> None:
    port = free_port()
    settings = {
        "replication.enabled": "true",
        "replication.mqtt_broker": "127.0.0.1",
        "replication.mqtt_port": port,
    }
    node = node_factory(*setting_flags(settings))
    done = run("health", address(node))
    assert (done.returncode, done.stderr) == (EXIT_PROBLEMS, b"")
    assert done.stdout.decode().startswith(f"broker: not connected to the broker at 127.0.0.1:{port}")
    told = json.loads(run("health", address(node), "--json").stdout)
    assert (told["ready"], list(told["not_ready"])) == (False, ["broker"])
    assert succeeds("health", address(node), "--live", "--json") == b'{"live": true}\n'


def test_a_node_on_a_full_disk_is_not_ready_until_there_is_room(disk: Disk, node_factory: NodeFactory) -> None:
    node = node_factory("--set", "memtable_size=1MiB", directory=disk.path / "data")
    with Client("127.0.0.1", node.port) as client:
        wait_until(lambda: _is_unready_when_full(disk, node, client), what="a full disk")
        disk.free()
        wait_until(lambda: run("health", address(node)).returncode == 0, what="the node to look again by itself")
        client.call(b"SET", b"k", b"v")


def _is_unready_when_full(disk: Disk, node: NodeProcess, client: Client) -> bool:
    """Fills the disk up to the last bytes; a checkpoint may give some back."""
    disk.fill()
    for size in (100_000, 1_000, 1):
        with suppress(NodeError):
            for number in itertools.count():
                client.call(b"SET", b"%d:%d" % (size, number), bytes(size))
    done = run("health", address(node))
    told = done.stdout.decode()
    assert done.returncode == 0 or (told.startswith("disk: ") and "disk full" in told)
    return done.returncode == EXIT_PROBLEMS


def test_a_node_that_is_not_there_or_hangs_or_is_none(node: NodeProcess) -> None:
    fails(EXIT_UNREACHABLE, "cannot connect", done=run("health", f"127.0.0.1:{free_port()}"))
    node.send_signal(signal.SIGSTOP)
    fails(EXIT_UNREACHABLE, "no whole answer within 5 s", done=run("health", address(node), "--live"))
    node.send_signal(signal.SIGCONT)
    with FakeNode() as fake:
        fails(EXIT_UNREACHABLE, "STATS strangely", done=run("health", fake.address))


@pytest.mark.parametrize(("verb", "command"), [("health", b"STATS"), ("members", b"MEMBERS")])
def test_a_reply_that_is_larger_than_any_of_its_command_is_not_read(verb: str, command: bytes) -> None:
    with FakeNode() as fake:
        fake.replies[command] = b"$900000000\r\n"
        fails(EXIT_UNREACHABLE, "a length of b'900000000'", done=run(verb, fake.address))
