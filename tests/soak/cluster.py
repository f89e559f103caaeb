"""The processes of a soak: three nodes, a broker, the networks between them, and a small disk for each node.

Nodes reach the broker through a proxy each, and each other through a proxy before each node; clients reach the nodes
themselves. Without root there are no small disks, and nothing fills them.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fixtures.proxy import Proxy
from fixtures.small_disk import Disk, as_root, small_disk

from merklekv import interpreter
from merklekv.harness.broker import OPEN, Mosquitto
from merklekv.harness.guard import Guard, remove
from merklekv.harness.process import HOST, Node, free_port, setting_flags

DURABILITY: Final = {"node-1": "everysec", "node-2": "everysec", "node-3": "always"}
DISK_BYTES: Final = 128 << 20
TOPIC_PREFIX: Final = "soak"
SETTINGS: Final[dict[str, object]] = {
    "memtable_size": "4MiB",  # a checkpoint each few seconds
    "retain_log_bytes": "4MiB",
    "limits.max_output_bytes": "16MiB",
    "limits.max_connections": 500,
    "limits.idle_timeout_seconds": 60,
    "notify_keyspace_events": "Kx",
    "replication.enabled": "true",
    "replication.mqtt_broker": HOST,
    "replication.topic_prefix": TOPIC_PREFIX,
    "replication.heartbeat_seconds": 2,
    "anti_entropy.interval_seconds": 2,
    "scrub.interval_seconds": 30,
}
TOOL_S: Final = 120.0


@dataclass
class SoakNode:
    """A node with its surroundings."""

    name: str
    process: Node
    to_broker: Proxy
    from_peers: Proxy
    http_port: int
    disk: Disk | None  # of its own, with the data directory

    @property
    def port(self) -> int:
        return self.process.port

    @property
    def directory(self) -> Path:
        return self.process.directory

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"


class _WatchedNode(Node):
    """A node that the guard kills if the soak is killed."""

    guard: Guard
    lock = threading.Lock()

    def launch(self) -> subprocess.Popen[bytes]:
        process = super().launch()
        with self.lock:
            self.guard.watch(process.pid)
        return process


@dataclass
class Cluster:
    """Started, but for the nodes."""

    nodes: list[SoakNode]
    broker: Mosquitto
    directory: Path

    def start(self) -> None:
        for node in self.nodes:
            node.process.start()

    def heal(self) -> None:
        """Ends everything that was done to networks and disks. The lanes of the faults have done so, if they ended."""
        for node in self.nodes:
            for proxy in (node.to_broker, node.from_peers):
                proxy.heal()
                proxy.thaw()


@contextmanager
def make_cluster(place: Path) -> Iterator[Cluster]:
    """In a directory that may be there from a run before: what that left is removed."""
    clean(place)
    data = place / "data"
    data.mkdir(parents=True)
    with ExitStack() as stack:
        guard = Guard(data)
        stack.callback(guard.dismiss)
        stack.callback(remove, data)
        broker = Mosquitto(place / "broker", *OPEN, "persistence true", own_session=True)
        stack.enter_context(broker)
        guard.watch(broker.pid)
        nodes = [_make_node(name, place, data, broker, guard, stack) for name in DURABILITY]
        yield Cluster(nodes, broker, place)


def clean(place: Path) -> None:
    """Removes what a run has left, also one that was killed."""
    for mount in place.glob("data/*"):
        if mount.is_mount():
            subprocess.run(as_root("umount", "--lazy", str(mount)), check=True)
    shutil.rmtree(place, ignore_errors=True)


def tool(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a verb of the tool to its end."""
    words = [*interpreter.command("merklekv"), verb, *arguments]
    environment = interpreter.environment()
    return subprocess.run(words, capture_output=True, text=True, timeout=TOOL_S, env=environment, check=False)


def _make_node(name: str, place: Path, data: Path, broker: Mosquitto, guard: Guard, stack: ExitStack) -> SoakNode:
    disk = None
    try:
        disk = stack.enter_context(small_disk(data / name, DISK_BYTES))
    except (subprocess.CalledProcessError, OSError):
        (data / name).mkdir(exist_ok=True)
    port, http_port = free_port(), free_port()
    to_broker, from_peers = Proxy(HOST, broker.port), Proxy(HOST, port)
    stack.callback(to_broker.close)
    stack.callback(from_peers.close)
    settings = SETTINGS | {
        "durability": DURABILITY[name],
        "http_port": http_port,
        "replication.mqtt_port": to_broker.port,
        "replication.advertise_address": f"{HOST}:{from_peers.port}",
    }
    node = _WatchedNode(
        data / name / "node", place / f"{name}.log", *setting_flags(settings), "--node-id", name, own_session=True
    )
    node.guard = guard
    node.port = port
    stack.callback(node.kill)
    return SoakNode(name, node, to_broker, from_peers, http_port, disk)
