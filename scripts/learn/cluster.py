"""A broker and nodes to draw pictures of: real processes on this machine, in a directory that goes with them.

with Cluster({"a": 0, "b": 60}) as cluster:     # up, they have heard of each other; the clock of b is 60 s ahead
    cluster.nodes["a"].ask(b"SET", b"k", b"v")
    cluster.broker.stop(); cluster.broker.start()
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from merklekv.demo.broker import HOST, free_port, make_broker
from merklekv.demo.process import Child
from merklekv.metrics import parse
from merklekv.net.client import Client, Reply, Unreachable

WAIT_S = 30.0
POLL_S = 0.02
FAKETIME = Path("/usr/lib")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Asks again and again.  Ends the program after WAIT_S in vain."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {WAIT_S:.0f} s in vain for {what}")
        time.sleep(POLL_S)


class Node:
    """One `merklekv run`.  With `exchanges` it exchanges when it meets others, but not again without SYNC."""

    def __init__(self, name: str, directory: Path, broker_port: int, skew_s: int, exchanges: bool) -> None:
        self.name = name
        self.port = free_port()
        self.child = Child(name, directory)
        self._skew_s = skew_s
        settings = {
            "anti_entropy.enabled": str(exchanges).lower(),
            "anti_entropy.interval_seconds": 86_400,
            "replication.enabled": "true",
            "replication.mqtt_broker": HOST,
            "replication.mqtt_port": broker_port,
            "replication.heartbeat_seconds": 1,
        }
        self._command = [sys.executable, "-m", "merklekv", "run", "--data-dir", str(directory / f"{name}.data")]
        self._command += ["--port", str(self.port), "--node-id", name]
        self._command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.child.launch([*self._clock(), *self._command])
        wait_until(self._answers, f"node {self.name}")
        self._client = Client(HOST, self.port)

    def ask(self, *words: bytes) -> Reply:
        """A command and its reply."""
        return self._client.call(*words)

    def ask_all(self, requests: list[tuple[bytes, ...]]) -> list[Reply]:
        """Many commands in one go."""
        self._client.send(requests)
        return [self._client.receive() for _ in requests]

    def figures(self) -> dict[str, str]:
        """STATS by name."""
        reply = self.ask(b"STATS")
        assert isinstance(reply, bytes)
        return parse(reply.decode())

    def leaves(self) -> list[bytes]:
        """The 65,536 leaves of its Merkle tree, 24 bytes each."""
        parts = self.ask_all([(b"TREE", b"%d" % inner) for inner in range(256)])
        return [part[at : at + 24] for part in parts if isinstance(part, bytes) for at in range(0, len(part), 24)]

    def _clock(self) -> list[str]:
        if not self._skew_s:
            return []
        libraries = list(FAKETIME.glob("*/faketime/libfaketime.so.1"))
        if not libraries:
            sys.exit("libfaketime is not installed: apt-get install faketime")
        return ["env", f"LD_PRELOAD={libraries[0]}", f"FAKETIME={self._skew_s:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC=1"]

    def _answers(self) -> bool:
        if not self.child.is_running:
            sys.exit(f"node {self.name} ended: {self.child.last_words()}")
        try:
            with Client(HOST, self.port) as client:
                return client.call(b"PING") == b"PONG"
        except Unreachable:
            return False


class Cluster:
    """Nodes by name, with the seconds by which their clocks are off, and their broker."""

    def __init__(self, clocks: dict[str, int], *, exchanges: bool = False) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="merklekv-learn-"))
        self.broker = make_broker("mosquitto", self._directory)
        self.nodes = {
            name: Node(name, self._directory, self.broker.port, skew_s, exchanges) for name, skew_s in clocks.items()
        }

    def __enter__(self) -> "Cluster":
        try:
            self.start_broker()
            for node in self.nodes.values():
                node.start()
            for node in self.nodes.values():
                wait_until(
                    lambda node=node: node.figures().get("replication_nodes") == str(len(self.nodes)),  # type: ignore[misc]
                    "the nodes to hear each other",
                )
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start_broker(self) -> None:
        """Starts it and waits until it takes connections."""
        self.broker.start()
        wait_until(lambda: self.broker.state == "up", "the broker")

    def stop_broker(self) -> None:
        """Stops it, and waits until every node has noticed."""
        self.broker.stop()
        for node in self.nodes.values():
            wait_until(lambda node=node: node.figures().get("replication_state") != "connected", "the loss to be seen")  # type: ignore[misc]

    def is_equal(self) -> bool:
        """Whether all hold the same."""
        return len({str(node.ask(b"HASH")) for node in self.nodes.values()}) == 1

    def _end(self) -> None:
        for node in self.nodes.values():
            node.child.kill()
        self.broker.child.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
