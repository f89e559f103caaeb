"""The processes of the demo: a broker, and nodes that are observed through their ports."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from merklekv.harness.broker import Broker
from merklekv.harness.process import HOST, Node, Server, setting_flags
from merklekv.net.client import Client, NodeError, Reply, Unreachable
from merklekv.web.differences import digests_of

REPLY_S: Final = 2.0
SETTINGS: Final[dict[str, str]] = {
    "replication.enabled": "true",
    "replication.mqtt_broker": HOST,
    "replication.topic_prefix": "demo",
    "anti_entropy.interval_seconds": "2",
}

Request = tuple[bytes, ...]
Answer = Reply | NodeError
P = TypeVar("P", bound=Server)


class Part(ABC, Generic[P]):
    """A broker or a node. The viewer or the demo's script starts and stops it."""

    def __init__(self, name: str, process: P) -> None:
        self.name = name
        self.process = process
        self.is_wanted = False  # it was started after it was last stopped
        self.started_at = 0.0  # monotonic

    def start(self) -> None:
        self.is_wanted = True
        self.started_at = time.monotonic()
        self.process.launch()

    @abstractmethod
    def stop(self) -> None:
        """Ends it, as an outage would."""

    @property
    def is_there(self) -> bool:
        """Whether nothing keeps it from serving: it runs, and is not to stop."""
        return self.is_wanted and self.process.is_running

    @property
    def state(self) -> str:
        """down (stopped by the demo), dead (ended by itself), or the state in which it runs."""
        if not self.process.is_running:
            return "dead" if self.is_wanted else "down"
        return self.running_state()

    @abstractmethod
    def running_state(self) -> str:
        """up, starting, or another state of the subclass."""


class BrokerPart(Part[Broker]):
    """The broker, which keeps its clients' sessions while it is stopped."""

    def start(self) -> None:
        super().start()
        self._was_up = False

    def stop(self) -> None:
        self.is_wanted = False
        self.process.pause()

    def running_state(self) -> str:
        """up, starting, stopping or frozen."""
        if not self.is_wanted:
            return "frozen" if self.process.kind == "iotcore" else "stopping"
        self._was_up = self._was_up or self.process.is_up
        return "up" if self._was_up else "starting"


@dataclass(frozen=True, slots=True)
class View:
    """What a node answered last."""

    keys: int
    root: str
    nodes: int  # online, itself included
    connection: str  # to the broker
    outbox: int


class NodePart(Part[Node]):
    """A node that can be killed and started again, on the same directory and port."""

    def __init__(self, name: str, directory: Path, broker_port: int) -> None:
        settings = SETTINGS | {"replication.mqtt_port": str(broker_port)}
        flags = [*setting_flags(settings), "--node-id", name, "--log-level", "warning"]
        log = directory / f"{name}.log"
        super().__init__(name, Node(directory / f"{name}.data", log, *flags, own_session=True))
        self.view: View | None = None  # None while it does not answer
        self._client: Client | None = None
        self._is_silent = False

    def stop(self) -> None:
        """kill -9."""
        self.is_wanted = False
        self.process.kill()
        self._disconnect()

    def running_state(self) -> str:
        """up, starting or silent (does not answer)."""
        if self.view is not None:
            return "up"
        return "silent" if self._is_silent else "starting"

    def observe(self) -> None:
        """Updates `view`."""
        answers = self.ask([(b"DBSIZE",), (b"HASH",), (b"REPLICATE", b"status")])
        is_whole = len(answers) == 3 and not any(isinstance(answer, NodeError) for answer in answers)
        self.view = _view_of(answers) if is_whole else None

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Sends requests. Returns the answers in their order: fewer than requests if the node stops answering."""
        answers: list[Answer] = []
        try:
            client = self._connected()
            if client is not None:
                client.send(requests)
                while len(answers) < len(requests):
                    answers.append(_answer(client))
            self._is_silent = False
        except Unreachable:
            self._disconnect()
            self._is_silent = True
        return answers

    def digests(self) -> list[bytes]:
        """Those of the inner nodes of the Merkle tree; none if the node does not answer."""
        answers = self.ask([(b"TREE",)])
        return digests_of(answers[0]) if answers else []

    def _connected(self) -> Client | None:
        if not self.process.is_running:
            self._disconnect()
        elif self._client is None and self.process.is_up:
            self._client = Client(HOST, self.process.port, REPLY_S)
        return self._client

    def _disconnect(self) -> None:
        self.view = None
        if self._client is not None:
            self._client.close()
            self._client = None


AnyPart = NodePart | BrokerPart


def _answer(client: Client) -> Answer:
    try:
        return client.receive()
    except NodeError as error:
        return error


def _view_of(answers: Sequence[Answer]) -> View:
    keys, root, status = answers
    assert isinstance(keys, int)
    assert isinstance(root, bytes)
    assert isinstance(status, bytes)
    words = status.decode().split()
    fields = dict(word.split("=", 1) for word in words if "=" in word)
    nodes = int(words[2]) if words[1] == "enabled" else 1
    return View(keys, root.decode(), nodes, fields.get("state", "disabled"), int(fields.get("outbox", "0")))
