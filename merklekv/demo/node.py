"""A node of the demo: one `merklekv run`, and what it shows of itself to any client."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from merklekv import interpreter
from merklekv.demo.broker import HOST
from merklekv.demo.process import Child
from merklekv.net.client import Client, NodeError, Reply, Unreachable

REPLY_S: Final = 2.0
SETTINGS: Final[dict[str, str]] = {
    "replication.enabled": "true",
    "replication.mqtt_broker": HOST,
    "replication.topic_prefix": "demo",
    "anti_entropy.interval_seconds": "2",
}
READY: Final = re.compile(r"^merklekv \S+ ready on \S+:(\d+),", re.MULTILINE)

Request = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What a node showed when it was last asked."""

    keys: int
    root: str
    nodes: int  # that it knows to be online, itself counted
    link: str  # to the broker
    outbox: int


class Node:
    """A node that can be killed and started again, on the same directory and port."""

    def __init__(self, name: str, directory: Path, broker_port: int) -> None:
        self.name = name
        self.port = 0
        self.look: Look | None = None  # None while it cannot be asked
        self.child = Child(name, directory)
        self._data = directory / f"{name}.data"
        self._broker_port = broker_port
        self._wanted = False
        self._client: Client | None = None

    def start(self) -> None:
        self._wanted = True
        command = interpreter.command("merklekv", "run", "--data-dir", str(self._data))
        command += ["--port", str(self.port), "--node-id", self.name, "--log-level", "warning"]
        for name, value in (SETTINGS | {"replication.mqtt_port": str(self._broker_port)}).items():
            command += ["--set", f"{name}={value}"]
        self.child.launch(command)

    def kill(self) -> None:
        """kill -9."""
        self._wanted = False
        self.child.kill()
        self._forget()

    @property
    def state(self) -> str:
        """up, starting, down (as asked to), dead (it ended by itself) or silent (it does not answer)."""
        if not self.child.is_running:
            return "dead" if self._wanted else "down"
        if self.look is not None:
            return "up"
        return "silent" if READY.search(self.child.output()) else "starting"

    def observe(self) -> None:
        """Asks how it is."""
        replies = self.ask([(b"DBSIZE",), (b"HASH",), (b"REPLICATE", b"status")])
        self.look = _look(replies) if len(replies) == 3 else None

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Sends requests; the replies that are no errors. Empty when it cannot be reached."""
        replies: list[Reply] = []
        try:
            client = self._connected()
            if client is None:
                return []
            client.send(requests)
            for _ in requests:
                try:
                    replies.append(client.receive())
                except NodeError:
                    continue
        except Unreachable:
            self._forget()
            return []
        return replies

    def _connected(self) -> Client | None:
        if not self.child.is_running:
            self._forget()
        elif self._client is None and (ready := READY.search(self.child.output())):
            self.port = int(ready[1])
            self._client = Client(HOST, self.port, REPLY_S)
        return self._client

    def _forget(self) -> None:
        self.look = None
        if self._client is not None:
            self._client.close()
            self._client = None


def _look(replies: list[Reply]) -> Look:
    keys, root, status = replies
    assert isinstance(keys, int)
    assert isinstance(root, bytes)
    assert isinstance(status, bytes)
    words = status.decode().split()
    figures = dict(word.split("=", 1) for word in words if "=" in word)
    nodes = int(words[2]) if words[1] == "enabled" else 1
    return Look(keys, root.decode(), nodes, figures.get("state", "disabled"), int(figures.get("outbox", "0")))
