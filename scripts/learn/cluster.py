"""A broker and nodes to draw pictures of: real processes on this machine, in a directory that goes with them.

with Cluster({"a": 0, "b": 60}) as cluster:     # up, they have heard of each other; the clock of b is 60 s ahead
    cluster.nodes["a"].ask(b"SET", b"k", b"v")
    cluster.broker.stop(); cluster.broker.start()
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Self

from merklekv.harness.broker import make_broker
from merklekv.harness.process import HOST, Node, setting_flags, wait_until
from merklekv.metrics import parse
from merklekv.net.client import Client, Reply

FAKETIME = Path("/usr/lib")


class LearnNode(Node):
    """A node with its client. It exchanges on SYNC alone."""

    def __init__(self, name: str, directory: Path, broker_port: int, skew_s: int) -> None:
        settings = {
            "anti_entropy.enabled": "false",
            "replication.enabled": "true",
            "replication.mqtt_broker": HOST,
            "replication.mqtt_port": broker_port,
            "replication.heartbeat_seconds": 1,
        }
        flags = setting_flags(settings)
        log = directory / f"{name}.log"
        super().__init__(directory / f"{name}.data", log, "--node-id", name, *flags, own_session=True)
        self.name = name
        if skew_s:
            self.environment |= wall_clock_off_by(skew_s)

    def start(self) -> Self:
        """Start it and wait until it serves."""
        super().start()
        self._client = Client(HOST, self.port)
        return self

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


def wall_clock_off_by(skew_s: int) -> dict[str, str]:
    """The environment in which a process sees a clock that is ahead by so much."""
    libraries = list(FAKETIME.glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        sys.exit("libfaketime is not installed: apt-get install faketime")
    return {"LD_PRELOAD": str(libraries[0]), "FAKETIME": f"{skew_s:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


class Cluster:
    """Nodes by name, with the seconds by which their clocks are off, and their broker."""

    def __init__(self, clocks: dict[str, int]) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="merklekv-learn-"))
        self.broker = make_broker("mosquitto", self._directory)
        self.nodes = {
            name: LearnNode(name, self._directory, self.broker.port, skew_s) for name, skew_s in clocks.items()
        }

    def __enter__(self) -> "Cluster":
        try:
            self.start_broker()
            for node in self.nodes.values():
                node.start()
            for node in self.nodes.values():
                wait_until(
                    lambda node=node: node.figures().get("replication_nodes") == str(len(self.nodes)),
                    what="the nodes to hear each other",
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

    def stop_broker(self) -> None:
        """Stops it, and waits until every node has noticed."""
        self.broker.stop()
        for node in self.nodes.values():
            wait_until(
                lambda node=node: node.figures().get("replication_state") != "connected", what="the loss to be seen"
            )

    def is_equal(self) -> bool:
        """Whether all hold the same."""
        return len({str(node.ask(b"HASH")) for node in self.nodes.values()}) == 1

    def _end(self) -> None:
        for node in self.nodes.values():
            node.kill()
        self.broker.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
