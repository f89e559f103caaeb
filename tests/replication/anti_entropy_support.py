"""Nodes with anti-entropy in one process: real engines and threads, and a network that is a call, and can be cut."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import wait_until

from merklekv.engine.engine import Engine
from merklekv.errors import MerkleKVError
from merklekv.replication.anti_entropy import AntiEntropy
from merklekv.replication.exchange_side import load_members
from merklekv.replication.presence import ONLINE, Status

LONG_S = 3600.0  # an interval that no test sees the end of


class Gone(MerkleKVError):
    """Nobody is at that address."""


class Net:
    """Who is at which address, and what happens on the way."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.unreachable: set[str] = set()
        self.before: Callable[[Node, str], None] = lambda asking, address: None  # called before each step
        self.connects: list[tuple[str, str]] = []


class Line:
    """A carrier that calls the other node."""

    def __init__(self, net: Net, asking: Node, address: str) -> None:
        net.connects.append((asking.name, address))
        if address in net.unreachable or address not in net.nodes:
            raise Gone(f"{address}: cannot connect")
        self._net, self._asking, self._address = net, asking, address
        self.closed = threading.Event()

    def ask(self, message: bytes) -> bytes:
        self._net.before(self._asking, self._address)
        if self.closed.is_set():
            raise Gone("the connection was closed")
        slices = self._net.nodes[self._address].anti_entropy.answer(message)
        try:
            while True:
                if (pause := next(slices)) is not None:
                    wait_until(pause)
        except StopIteration as end:
            answer: bytes = end.value
            return answer

    def close(self) -> None:
        self.closed.set()


class Node:
    """An engine with its anti-entropy, at the address `name:1`."""

    def __init__(self, net: Net, path: Path, **options: Any) -> None:
        self.name = path.name
        self.address = f"{self.name}:1"
        self.engine = Engine(path, absorb="manual", durability="never")
        self.members = load_members(self.engine, self.name)
        self.failures: list[BaseException] = []
        settings = {"interval_s": LONG_S, "share_percent": 100} | options
        self.anti_entropy = AntiEntropy(
            self.engine,
            self.members,
            "test",
            lambda host, port: Line(net, self, f"{host}:{port}"),
            self.failures.append,
            **settings,
        )
        net.nodes[self.address] = self

    def start(self) -> Node:
        self.anti_entropy.start(self.address)
        return self

    def status(self, state: str = ONLINE, instance: str = "1") -> Status:
        return Status(
            self.name, state, self.address, instance=instance, birth=self.members.identity.birth.hex()
        )

    def figures(self) -> dict[str, Any]:
        return dict(self.anti_entropy.statistics())

    def sync(self, other: Node, **flags: bool) -> Any:
        return self.anti_entropy.sync(other.name, 1, flags.get("full", False), flags.get("verify", False))
