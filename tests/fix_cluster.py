"""Several real nodes at one real broker.

def test_something(harness):
    a, b = harness.create_nodes(2)
    a.set("k", "v")
    b.wait_for("k", "v")
    harness.wait_converged()
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cbor2
import pytest
from fix_broker import Broker, BrokerFactory, Wire
from fix_node import LineClient, NodeFactory, NodeProcess
from support import wait_until

from merklekv.replication import mqtt

CONVERGE_S = 30.0
HEARTBEAT_S = 1
HEALING = ("--set", "anti_entropy.enabled=true", "--set", "anti_entropy.interval_seconds=1")


class NodeHandle:
    """One node of a cluster: the process, and what a test asks of it."""

    def __init__(self, node_id: str, process: NodeProcess) -> None:
        self.node_id = node_id
        self.process = process
        self._client: LineClient | None = None

    @property
    def client(self) -> LineClient:
        if self._client is None:
            self._client = self.process.connect()
        return self._client

    def ask(self, request: str) -> str:
        return self.client.ask(request)

    def set(self, key: str, value: str) -> None:
        assert self.ask(f"SET {key} {value}") == "OK"

    def set_many(self, pairs: Mapping[str, str]) -> None:
        """All in one go, pipelined."""
        self.client.send(b"".join(f"SET {key} {value}\r\n".encode() for key, value in pairs.items()))
        for _ in pairs:
            assert self.client.line() == "OK"

    def get(self, key: str) -> str | None:
        reply = self.ask(f"GET {key}")
        return None if reply == "NOT_FOUND" else reply.removeprefix("VALUE ")

    def wait_for(self, key: str, value: str | None, seconds: float = CONVERGE_S) -> None:
        """Until the key has this value here; None: until it is gone."""
        wait_until(lambda: self.get(key) == value, seconds=seconds, what=f"{key}={value} on {self.node_id}")

    def root(self) -> str:
        return self.ask("HASH").removeprefix("HASH ")

    def key_count(self) -> int:
        return int(self.ask("DBSIZE").split()[1])

    def figures(self) -> dict[str, str]:
        """STATS by name."""
        return dict(line.split(":", 1) for line in self.client.ask_lines("STATS all")[1:])

    def figure(self, name: str) -> int:
        return int(self.figures().get(name, "0"))

    def wait_figure(self, name: str, least: int = 1, seconds: float = CONVERGE_S) -> None:
        wait_until(lambda: self.figure(name) >= least, seconds=seconds, what=f"{name} of {least} on {self.node_id}")

    def wait_connected(self) -> None:
        wait_until(
            lambda: self.figures()["replication_state"] == "connected", seconds=CONVERGE_S, what="the connection"
        )

    def wait_disconnected(self) -> None:
        wait_until(
            lambda: self.figures()["replication_state"] != "connected", seconds=CONVERGE_S, what="the loss to be seen"
        )

    def start(self) -> None:
        self.process.start()

    def stop(self) -> None:
        self.disconnect()
        assert self.process.stop() == 0

    def kill(self) -> None:
        self.disconnect()
        self.process.kill()

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class ReplicationTestHarness:
    """Nodes at a broker, under a topic prefix of their own, and a wire to speak and listen there."""

    def __init__(self, factory: NodeFactory, directory: Path, broker: Broker, prefix: str) -> None:
        self.broker = broker
        self.prefix = prefix
        self.nodes: list[NodeHandle] = []
        self._tag = f"-{secrets.token_hex(4)}" if broker.is_shared else ""  # names are the whole broker's
        self._factory = factory
        self._directory = directory

    def create_node(
        self,
        node_id: str = "",
        *flags: str,
        start: bool = True,
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> NodeHandle:
        """A node, connected when `start` is left true.  `settings` are those of [replication].  At a broker that others
        use, its id is `node_id` and something that makes it unique.

        Anti-entropy is off, or it would hide what replication loses; the flags HEALING put it on.
        """
        node_id = (node_id or f"node-{len(self.nodes)}") + self._tag
        all_settings = {
            "enabled": "true",
            "mqtt_broker": self.broker.host,
            "mqtt_port": self.broker.port,
            "topic_prefix": self.prefix,
            "client_id": node_id,
            "heartbeat_seconds": HEARTBEAT_S,
        } | settings
        words = [word for name, value in all_settings.items() for word in ("--set", f"replication.{name}={value}")]
        words += ["--set", "anti_entropy.enabled=false"]
        process = self._factory(
            *words, *flags, start=False, directory=self._directory / node_id, environment=environment
        )
        node = NodeHandle(node_id, process)
        self.nodes.append(node)
        if start:
            node.start()
            node.wait_connected()
        return node

    def create_nodes(self, count: int, *flags: str) -> list[NodeHandle]:
        """Nodes that have heard of each other."""
        nodes = [self.create_node("", *flags) for _ in range(count)]
        for node in nodes:
            node.wait_figure("replication_nodes", count)
        return nodes

    def events_topic(self, node_id: str) -> str:
        return f"{self.prefix}/{node_id}/events"

    def wait_converged(self, *nodes: NodeHandle, seconds: float = CONVERGE_S) -> str:
        """Until the nodes (all, when none is named) hold the same; the root."""
        chosen = nodes or tuple(self.nodes)
        wait_until(lambda: len({node.root() for node in chosen}) == 1, seconds=seconds, what="equal roots")
        return chosen[0].root()

    def close(self) -> None:
        """Let go of the nodes; at a broker that others use, end them and leave nothing of them there."""
        for node in self.nodes:
            node.disconnect()
            if self.broker.is_shared:
                node.process.end()
                shown = mqtt.Broker(self.broker.host, self.broker.port, self.prefix, node.node_id)
                self.broker.forget(shown.client_id, f"{self.prefix}/{node.node_id}/status")


def make_event(key: str = "k", value: bytes | None = b"v", **fields: Any) -> dict[str, Any]:
    """A ChangeEvent of the node `outsider`, as a plain map; `fields` replace or add."""
    event: dict[str, Any] = {
        "v": 1,
        "op": "del" if value is None else "set",
        "key": key,
        "val": value,
        "ts": time.time_ns(),
        "src": "outsider",
        "op_id": bytes(16),
    }
    return event | fields


class Outsider:
    """A node that is none: publishes events of its own making to `{prefix}/outsider/events`."""

    def __init__(self, wire: Wire, prefix: str) -> None:
        self.wire = wire
        self.topic = f"{prefix}/outsider/events"

    def publish(self, *events: dict[str, Any]) -> None:
        for event in events:
            self.publish_raw(cbor2.dumps(event))

    def publish_raw(self, payload: bytes) -> None:
        assert self.wire.publish(self.topic, payload)


HarnessFactory = Callable[[Broker], ReplicationTestHarness]


@pytest.fixture
def harness_at(node_factory: NodeFactory, tmp_path: Path, topic_prefix: str) -> Iterator[HarnessFactory]:
    """Make clusters: `harness_at(broker)`; their nodes' directories are the test's."""
    made: list[ReplicationTestHarness] = []

    def make(broker: Broker) -> ReplicationTestHarness:
        directory = tmp_path / f"cluster-{len(made)}"
        directory.mkdir()
        made.append(ReplicationTestHarness(node_factory, directory, broker, topic_prefix))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


@pytest.fixture
def harness(harness_at: HarnessFactory, broker: Broker) -> ReplicationTestHarness:
    """An empty cluster; create its nodes."""
    return harness_at(broker)


@pytest.fixture
def own_harness(harness_at: HarnessFactory, broker_factory: BrokerFactory) -> ReplicationTestHarness:
    """A cluster at a broker of the test's own, which it may stop and kill."""
    return harness_at(broker_factory())


@pytest.fixture
def outsider(wire: Wire, topic_prefix: str) -> Outsider:
    return Outsider(wire, topic_prefix)
