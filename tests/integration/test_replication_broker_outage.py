"""The broker goes away and comes back: nodes serve on, and nothing that was written is missing afterwards."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from fixtures.broker import BrokerFactory
from fixtures.cluster import HarnessFactory, ReplicationTestHarness
from fixtures.patient_node import patient
from fixtures.proxy import ProxyFactory
from fixtures.support import wait_until

pytestmark = [pytest.mark.replication, pytest.mark.slow]


ATTEMPTS = 7


class Doorman:
    """Listens where a broker should, turns every client away, and remembers when each came."""

    def __init__(self) -> None:
        self.visits: list[float] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._turn_away, daemon=True)
        self._thread.start()

    def _turn_away(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                visitor = self._listener.accept()[0]
                self.visits.append(time.monotonic())  # first: the visitor waits from when it is turned away
                visitor.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def doorman() -> Iterator[Doorman]:
    made = Doorman()
    yield made
    made.close()


def numbered(count: int, name: str = "k") -> dict[str, str]:
    return {f"{name}{number}": str(number) for number in range(count)}


class TestOutage:
    def test_writes_of_all_nodes_during_an_outage_arrive_everywhere(self, own_harness: ReplicationTestHarness) -> None:
        nodes = own_harness.create_nodes(3)
        own_harness.broker.stop()
        for node in nodes:
            node.wait_disconnected()
            node.set_many(numbered(500, node.node_id))
        own_harness.broker.start()
        for node in nodes:
            wait_until(lambda node=node: node.key_count() == 1500)
        own_harness.wait_converged()

    def test_a_large_backlog_arrives_whole(self, own_harness: ReplicationTestHarness) -> None:
        a, b = own_harness.create_nodes(2)
        own_harness.broker.kill()
        a.wait_disconnected()
        a.set_many(numbered(50_000))
        assert a.figure("outbox_events") == 50_000
        assert a.figure("outbox_oldest_ms") > 0
        own_harness.broker.start()
        wait_until(lambda: b.key_count() == 50_000)
        own_harness.wait_converged()
        wait_until(lambda: a.figure("outbox_events") == 0)

    def test_outages_one_after_the_other(self, own_harness: ReplicationTestHarness) -> None:
        a, b = own_harness.create_nodes(2)
        for turn in range(3):
            own_harness.broker.kill()
            a.wait_disconnected()
            b.wait_disconnected()
            a.set_many(numbered(100, f"a{turn}-"))
            b.set_many(numbered(100, f"b{turn}-"))
            own_harness.broker.start()
            own_harness.wait_converged()
        assert a.key_count() == 600

    def test_what_the_broker_saved_is_delivered_to_a_node_that_was_away(
        self, harness_at: HarnessFactory, broker_factory: BrokerFactory
    ) -> None:
        broker = broker_factory("allow_anonymous true", "persistence true", "max_queued_messages 100000")
        harness = harness_at(broker)
        a, b = harness.create_nodes(2)
        b.stop()
        a.set_many(numbered(1000))
        wait_until(lambda: a.figure("outbox_events") == 0)
        broker.stop()
        broker.start()
        b.start()
        wait_until(lambda: b.key_count() == 1000)
        harness.wait_converged()


class TestPartition:
    def test_two_halves_heal(self, own_harness: ReplicationTestHarness, proxy_factory: ProxyFactory) -> None:
        b = own_harness.create_node("b")
        proxy = proxy_factory(own_harness.broker.host, own_harness.broker.port)
        a = own_harness.create_node("a", mqtt_port=proxy.port)
        proxy.cut()
        a.wait_disconnected()
        a.set_many(numbered(300, "a"))
        b.set_many(numbered(300, "b"))
        a.set("both", "a")
        b.set("both", "b")
        proxy.heal()
        own_harness.wait_converged()
        assert a.key_count() == 601
        assert a.get("both") == b.get("both") == "b"

    def test_a_connection_that_freezes_goes_on_where_it_was(
        self, own_harness: ReplicationTestHarness, proxy_factory: ProxyFactory
    ) -> None:
        b = own_harness.create_node("b")
        proxy = proxy_factory(own_harness.broker.host, own_harness.broker.port)
        a = own_harness.create_node("a", start=False, mqtt_port=proxy.port)
        a.process.program = patient(
            "from merklekv.replication.stream import broker_session", "broker_session.SILENCE_MAX_S = 3600.0"
        )
        a.start()
        a.wait_connected()
        proxy.freeze()
        a.set_many(numbered(500))
        a.wait_figure("outbox_oldest_ms", 2000)  # long enough for both ends to look twice
        assert b.key_count() == 0
        proxy.thaw()
        wait_until(lambda: b.key_count() == 500)
        own_harness.wait_converged()
        assert a.figure("broker_losses") == 0

    def test_what_was_on_its_way_when_the_connection_broke_arrives(
        self, own_harness: ReplicationTestHarness, proxy_factory: ProxyFactory
    ) -> None:
        b = own_harness.create_node("b")
        proxy = proxy_factory(own_harness.broker.host, own_harness.broker.port)
        a = own_harness.create_node("a", mqtt_port=proxy.port)
        proxy.freeze()
        a.set_many(numbered(500))
        a.wait_figure("outbox_in_flight")
        proxy.cut()
        a.wait_disconnected()
        proxy.heal()
        proxy.thaw()
        wait_until(lambda: b.key_count() == 500)
        own_harness.wait_converged()


class TestGracefulDegradation:
    def test_every_command_works_without_a_broker(self, own_harness: ReplicationTestHarness) -> None:
        node = own_harness.create_node()
        own_harness.broker.kill()
        node.wait_disconnected()
        assert node.ask("SET k 1") == "OK"
        assert node.ask("INCR k") == "VALUE 2"
        assert node.ask("APPEND k 0") == "VALUE 20"
        assert node.ask("DELETE k") == "DELETED"
        assert node.ask("TRUNCATE") == "OK"
        assert node.ask("REPLICATE status").startswith("REPLICATION enabled 1 node state=")

    def test_local_writes_do_not_wait_for_the_broker(self, own_harness: ReplicationTestHarness) -> None:
        node = own_harness.create_node()
        own_harness.broker.kill()
        node.wait_disconnected()
        node.set_many(numbered(20_000))
        assert node.figure("outbox_events") == 20_000

    def test_a_stop_during_an_outage_keeps_what_waits(self, own_harness: ReplicationTestHarness) -> None:
        a, b = own_harness.create_nodes(2)
        own_harness.broker.kill()
        a.wait_disconnected()
        a.set_many(numbered(100))
        a.stop()
        own_harness.broker.start()
        b.wait_connected()
        a.start()
        wait_until(lambda: b.key_count() == 100)


class TestRetries:
    def test_the_waits_between_attempts_double_and_attempts_never_end(
        self, own_harness: ReplicationTestHarness, doorman: Doorman
    ) -> None:
        """A busy machine only makes waits longer, so what is asserted is how short one may be: half of the wait that
        0.1 s, doubled again and again up to 3 s, has come to.
        """
        own_harness.create_node(start=False, mqtt_port=doorman.port).start()
        wait_until(lambda: len(doorman.visits) >= ATTEMPTS, what=f"{ATTEMPTS} attempts")
        waits = [later - earlier for earlier, later in itertools.pairwise(doorman.visits)]
        shortest = [0.5 * wait for wait in (0.1, 0.3, 0.7, 1.5, 3, 3)]
        assert all(wait >= least for wait, least in zip(waits, shortest, strict=False)), waits

    def test_many_failures_are_one_line_and_one_loss(self, own_harness: ReplicationTestHarness) -> None:
        node = own_harness.create_node(start=False)
        node.process.program = patient("from merklekv import log_throttle", "log_throttle.THROTTLE_S = 3600.0")
        node.start()
        node.wait_connected()
        own_harness.broker.kill()
        wait_until(lambda: "Connection refused" in node.process.output())
        own_harness.broker.start()
        node.wait_connected()
        assert node.figure("broker_losses") == 1
        assert node.process.output().count("Connection refused") <= 2, "repeated failures are one line"

    def test_a_broker_that_comes_late_is_found(self, harness_at: HarnessFactory, broker_factory: BrokerFactory) -> None:
        broker = broker_factory(start=False)
        node = harness_at(broker).create_node(start=False)
        node.start()
        node.set("k", "v")
        wait_until(lambda: "Connection refused" in node.figures()["replication_detail"])
        broker.start()
        node.wait_connected()
        wait_until(lambda: node.figure("outbox_events") == 0)
