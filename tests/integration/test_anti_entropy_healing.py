"""After lost events and absences, nodes that meet again have the same records, and nothing deleted comes back."""

from __future__ import annotations

import json
import math
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.broker import BrokerFactory, Wire
from fixtures.cluster import HEALING, HarnessFactory, NodeHandle, ReplicationTestHarness
from fixtures.node import NodeFactory
from fixtures.proxy import ProxyFactory
from fixtures.support import wait_until

from merklekv.engine.verify.check import check_directory

pytestmark = pytest.mark.replication

OFTEN = ("--set", "anti_entropy.interval_seconds=1")
SYNC_S = 60.0  # a whole exchange, also on a busy machine that measures coverage


def numbered(count: int, name: str = "k") -> dict[str, str]:
    return {f"{name}{number}": str(number) for number in range(count)}


Lone = Callable[..., NodeHandle]


@pytest.fixture
def lone(node_factory: NodeFactory) -> Iterator[Lone]:
    """Make nodes without a broker: `lone("a", "--flag", ...)`."""
    nodes: list[NodeHandle] = []

    def make(name: str, *flags: str) -> NodeHandle:
        nodes.append(NodeHandle(name, node_factory("--node-id", name, *flags)))
        return nodes[-1]

    yield make
    for node in nodes:
        node.disconnect()


def peers(*ports: int) -> tuple[str, str]:
    return "--set", f"anti_entropy.peer_list={','.join(f'127.0.0.1:{port}' for port in ports)}"


def sync(one: NodeHandle, other: NodeHandle, flags: str = "") -> str:
    with one.process.connect(SYNC_S) as client:
        return client.ask(f"SYNC 127.0.0.1 {other.process.port} {flags}".strip())


def wait_settled(*nodes: NodeHandle) -> None:
    """Until every tombstone is collected, and the nodes hold the same."""
    wait_until(lambda: all(node.figure("db_tombstones") == 0 for node in nodes), what="collection")
    wait_until(lambda: len({node.root() for node in nodes}) == 1, what="equal roots")


def end_soundly(*nodes: NodeHandle) -> None:
    """Stops them; what they leave holds every invariant."""
    for node in nodes:
        node.stop()
        assert check_directory(node.process.directory) == []


class TestLostEvents:
    def test_a_queue_that_overflowed(self, harness_at: HarnessFactory, broker_factory: BrokerFactory) -> None:
        broker = broker_factory("allow_anonymous true", "max_queued_messages 10", "persistence false")
        harness = harness_at(broker)
        a, b = harness.create_nodes(2, "--set", "anti_entropy.enabled=true")
        b.kill()
        for number in range(60):  # one message each, far more than the broker keeps
            a.set(f"k{number}", "v")
            wait_until(lambda: a.figure("outbox_events") == 0)
        b.start()
        wait_until(lambda: b.key_count() == 60)
        harness.wait_converged()
        wait_until(lambda: b.figure("exchange_peers_in_sync") == 1)

    def test_a_broker_that_was_killed_with_what_it_had(self, own_harness: ReplicationTestHarness) -> None:
        a, b, c = own_harness.create_nodes(3, "--set", "anti_entropy.enabled=true")
        c.stop()
        a.set_many(numbered(500, "a"))
        b.set_many(numbered(500, "b"))
        wait_until(lambda: a.figure("outbox_events") == b.figure("outbox_events") == 0, what="the broker to have it")
        own_harness.broker.kill()
        own_harness.broker.start()
        c.start()
        wait_until(lambda: c.key_count() == 1000)
        own_harness.wait_converged()

    def test_an_event_that_the_broker_never_takes(
        self, harness_at: HarnessFactory, broker_factory: BrokerFactory
    ) -> None:
        harness = harness_at(broker_factory("allow_anonymous true", "max_packet_size 20000"))
        a, b = harness.create_nodes(2, "--set", "anti_entropy.enabled=true")
        a.set("large", "L" * 30_000)
        b.wait_for("large", "L" * 30_000)

    def test_events_given_up_for_the_log_was_full(self, own_harness: ReplicationTestHarness) -> None:
        own = ("--set", "anti_entropy.enabled=true", "--memtable-size", "64KiB")
        a = own_harness.create_node("a", *own, outbox_max_bytes="1MiB")
        b = own_harness.create_node("b", "--set", "anti_entropy.enabled=true")
        own_harness.broker.stop()
        a.wait_disconnected()
        a.set_many({f"k{number}": "x" * 1000 for number in range(4000)})
        a.wait_figure("outbox_dropped_overflow")
        own_harness.broker.start()
        wait_until(lambda: b.key_count() == 4000)
        own_harness.wait_converged()


class TestJoining:
    def test_an_empty_node_at_the_broker(self, harness: ReplicationTestHarness) -> None:
        a = harness.create_node("a", *HEALING)
        a.set_many(numbered(5000))
        assert a.ask("DEL k7") == "DELETED"
        wait_until(lambda: a.figure("outbox_events") == 0)
        b = harness.create_node("b", *HEALING)
        wait_until(lambda: b.key_count() == 4999)
        harness.wait_converged()
        wait_settled(a, b)
        assert b.get("k7") is None

    def test_without_any_broker(self, lone: Lone) -> None:
        a = lone("a")
        b = lone("b", *OFTEN, *peers(a.process.port))
        c = lone("c", *OFTEN, *peers(b.process.port))
        a.set_many(numbered(2000, "a"))
        b.set("from-b", "1")
        c.set("from-c", "1")
        wait_until(lambda: len({node.root() for node in (a, b, c)}) == 1 and a.key_count() == 2002)
        b.wait_figure("exchange_peers_in_sync")  # once the exchange that has made them equal has ended
        assert b.ask("REPLICATE status") == "REPLICATION disabled peers=1 in_sync=1"
        assert c.ask("TRUNCATE") == "OK"
        c.set("later", "1")
        a.wait_for("later", "1")
        wait_until(lambda: a.key_count() == b.key_count() == 1)

    def test_all_nodes_may_have_one_configuration(self, lone: Lone) -> None:
        """Each finds itself in the list, and does not mind."""
        first = lone("a")
        second = lone("b")
        for node in (first, second):
            node.stop()
            node.process.flags = (*node.process.flags, *OFTEN, *peers(first.process.port, second.process.port))
            node.start()
        first.set("k", "v")
        second.wait_for("k", "v")
        for node in (first, second):
            wait_until(lambda node=node: node.figure("exchange_peers") == node.figure("exchange_peers_in_sync") == 1)


@pytest.mark.slow
class TestBeingAway:
    def test_a_restored_backup_brings_nothing_deleted_back(
        self, harness: ReplicationTestHarness, tmp_path: Path
    ) -> None:
        a, b = harness.create_nodes(2, *HEALING)
        a.set_many(numbered(300))
        wait_until(lambda: b.key_count() == 300)
        b.stop()
        shutil.copytree(b.process.directory, tmp_path / "backup")
        b.start()
        for number in range(0, 300, 3):
            assert a.ask(f"DEL k{number}") == "DELETED"
        a.set("k1", "changed")
        wait_settled(a, b)
        b.stop()
        shutil.rmtree(b.process.directory)
        shutil.copytree(tmp_path / "backup", b.process.directory)
        b.start()
        b.set("after", "the restore")
        a.wait_for("after", "the restore")
        wait_until(lambda: b.key_count() == a.key_count() == 201)
        assert b.get("k1") == "changed"
        wait_settled(a, b)
        assert a.get("k0") is None
        wait_until(lambda: a.figure("exchange_discarded") + b.figure("exchange_discarded") == 100)
        end_soundly(a, b)

    def test_a_node_that_was_away_holds_tombstones_back(self, harness: ReplicationTestHarness) -> None:
        a, b, c = harness.create_nodes(3, *HEALING)
        a.set_many(numbered(100))
        harness.wait_converged()
        for node in (a, b, c):
            node.wait_figure("members", 3)
        wait_until(lambda: min(node.figure("gc_horizon_ns") for node in (a, b, c)) > 0)
        assert c.ask("REPLICATE disable") == "OK"
        c.set("while", "alone")
        c.stop()
        for number in range(50):
            assert a.ask(f"DEL k{number}") == "DELETED"
        wait_until(lambda: b.figure("db_tombstones") == 50)
        for node in (a, b):
            node.wait_figure("exchange_peers_in_sync")
            assert node.figure("db_tombstones") == 50, "one member does not have them"
        c.start()
        wait_until(lambda: c.key_count() == 51)
        wait_settled(a, b, c)
        assert c.get("k0") is None
        assert a.get("while") == "alone"
        end_soundly(a, b, c)

    def test_a_forgotten_node_that_returns(self, own_harness: ReplicationTestHarness) -> None:
        a, b = own_harness.create_nodes(2, *HEALING)
        a.set_many(numbered(10))
        wait_until(lambda: b.key_count() == 10)
        b.stop()
        assert a.ask("DEL k0") == "DELETED"
        with a.process.connect() as client:
            client.send(b"*2\r\n$6\r\nFORGET\r\n$%d\r\n%b\r\n" % (len(b.node_id), b.node_id.encode()))
            assert client.line() == "+OK"
        assert a.ask("TRUNCATE") == "OK"
        b.start()
        b.set("k1", "not wanted any more")
        a.wait_figure('refused_events{reason="removed"}')
        wait_until(lambda: "then start it with a new one" in b.figures().get(f'peer_error{{peer="{a.node_id}"}}', ""))
        wait_until(lambda: "then start it with a new one" in b.process.output())
        assert a.key_count() == 0
        b.stop()
        shutil.rmtree(b.process.directory)
        b.start()
        a.set("new", "1")
        b.wait_for("new", "1")
        b.set("own", "1")
        a.wait_for("own", "1")
        assert b.key_count() == 2


class TestSync:
    def test_two_nodes_that_know_of_nothing(self, lone: Lone) -> None:
        a, b = lone("a"), lone("b")
        a.set_many(numbered(1000, "a"))
        b.set_many(numbered(1000, "b"))
        assert sync(a, b, "--full --verify") == "OK"
        assert a.root() == b.root()
        assert a.key_count() == 2000
        assert a.ask(f"SYNC localhost {b.process.port}") == "OK"
        for node in (a, b):
            node.wait_figure("members", 2)
        assert a.figure("members") == b.figure("members") == 2

    def test_what_can_be_wrong(self, lone: Lone) -> None:
        a = lone("a")
        other = lone("b", "--set", "replication.topic_prefix=elsewhere")
        same = lone("a")
        assert sync(a, other).startswith("ERROR node a belongs to the cluster 'merkle_kv' and node b to 'elsewhere'")
        assert sync(a, same).startswith("ERROR two nodes have the id a")
        assert sync(a, a) == "ERROR node a has reached itself at this address"
        assert "cannot connect" in a.ask("SYNC 127.0.0.1 1")
        assert a.ask("PING") == "PONG"

    def test_others_are_served_meanwhile(self, lone: Lone) -> None:
        a = lone("a")
        a.set_many({f"k{number}": "x" * 100 for number in range(50_000)})
        # A machine that stands still during one exchange does not do so during each.
        assert any(self.pings_during_a_sync(a, lone(f"b{number}")) > 20 for number in range(3))

    def pings_during_a_sync(self, a: NodeHandle, b: NodeHandle) -> int:
        done = threading.Event()
        answers: list[str] = []

        def run() -> None:
            with b.process.connect(60) as client:
                answers.append(client.ask(f"SYNC 127.0.0.1 {a.process.port}"))
            done.set()

        running = threading.Thread(target=run)
        running.start()
        pings = 0
        while not done.is_set():
            assert a.ask("PING") == b.ask("PING") == "PONG"
            assert a.ask("SET busy 1") == "OK"
            pings += 1
        running.join()
        assert answers == ["OK"]
        assert b.key_count() >= 50_000
        return pings


@pytest.mark.slow
class TestBadNetworks:
    def test_a_stop_while_the_other_side_hangs(self, lone: Lone, proxy_factory: ProxyFactory) -> None:
        a = lone("a")
        proxy = proxy_factory("127.0.0.1", a.process.port)
        proxy.freeze()
        b = lone("b", *peers(proxy.port))
        wait_until(lambda: b.figure("exchange_running") == 1)
        b.stop()

    def test_a_connection_that_is_cut_again_and_again(self, lone: Lone, proxy_factory: ProxyFactory) -> None:
        a = lone("a")
        a.set_many({f"k{number}": "x" * 200 for number in range(20_000)})
        proxy = proxy_factory("127.0.0.1", a.process.port)
        proxy.freeze_at(0)
        b = lone("b", *OFTEN, *peers(proxy.port))
        for next_cut in (300_000, 600_000, math.inf):
            wait_until(lambda: proxy.is_frozen, what="the middle of an exchange")
            proxy.cut()
            proxy.thaw()
            proxy.freeze_at(next_cut)
            proxy.heal()
        wait_until(lambda: b.root() == a.root())
        assert b.key_count() == 20_000
        assert b.figure("exchange_failures") >= 1

    def test_killed_in_the_middle(self, lone: Lone, proxy_factory: ProxyFactory) -> None:
        a = lone("a")
        a.set_many({f"k{number}": "x" * 200 for number in range(20_000)})
        proxy = proxy_factory("127.0.0.1", a.process.port)
        proxy.freeze_at(500_000)
        b = lone("b", *OFTEN, *peers(proxy.port))
        wait_until(lambda: proxy.is_frozen, what="the middle of an exchange")
        b.kill()
        proxy.thaw()
        b.start()
        wait_until(lambda: b.root() == a.root())
        end_soundly(a, b)


def test_presence_says_where_a_node_is_reached(harness: ReplicationTestHarness, wire: Wire) -> None:
    def announced(node: NodeHandle) -> dict[str, str]:
        topic = f"{harness.prefix}/{node.node_id}/status"
        wait_until(lambda: wire.received(topic))
        status: dict[str, str] = json.loads(wire.received(topic)[-1])
        return status

    everywhere = harness.create_node("everywhere", "--host", "0.0.0.0")
    assert announced(everywhere)["address"] == f"{socket.gethostname()}:{everywhere.process.port}"
    named = harness.create_node("named", advertise_address="node.example:1234")
    assert announced(named)["address"] == "node.example:1234"
    assert len(bytes.fromhex(announced(named)["store_id"])) == 8
