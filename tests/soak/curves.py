"""What is recorded each second: a row for each node and the broker, in memory and in a CSV file.

A curve is a column of the rows of one part. What cannot be had at the moment, such as the figures of a node that is
down, is left empty.
"""

from __future__ import annotations

import csv
import http.client
import os
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from merklekv.harness.process import HOST, Server
from merklekv.metrics import parse, total
from merklekv.net.client import Client, NodeError, Unreachable

from .cluster import SoakNode
from .load import Probe

ANSWER_S: Final = 0.5
SCRAPE_EVERY: Final = 5  # rows
LATENCIES_OF: Final = 10  # rows: one has too few for a p99
DISK_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the CSV file."""

    name: str
    title: str  # in the picture
    scale: float = 1.0  # of a unit in the picture
    slack: float | None = None  # what is no growth; None: it is shown, and may grow


MB: Final = 1e6
COLUMNS: Final = (
    Column("anon_bytes", "anonymous memory, MB", MB, 4 * MB),
    Column("rss_bytes", "resident memory, MB", MB),
    Column("fds", "descriptors", 1, 10),
    Column("threads", "threads", 1, 2),
    Column("disk_bytes", "disk, MB", MB, 8 * MB),
    Column("keys", "keys", 1, 200),
    Column("tombstones", "tombstones", 1, 2_000),
    Column("outbox_events", "events in the outbox", 1, 1_000),
    Column("exchanges", "exchanges completed with peers that are online"),
    Column("members", "members", 1, 3),
    Column("p50_ms", "latency of an honest client over ten seconds, p50, ms"),
    Column("p99_ms", "the same, p99, ms"),
    Column("max_ms", "the same, longest, ms"),
)
FIGURES: Final = {  # of STATS, by column
    "keys": "db_keys",
    "tombstones": "db_tombstones",
    "outbox_events": "outbox_events",
    "exchanges": "exchange_completed",
    "members": "members",
}

Row = dict[str, float]


class Curves:
    """All rows so far, and the file that has them."""

    def __init__(self, path: Path) -> None:
        self.rows: dict[str, list[tuple[float, Row]]] = {}
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(["second", "part", *(column.name for column in COLUMNS)])

    def add(self, second: float, part: str, row: Row) -> None:
        self.rows.setdefault(part, []).append((second, row))
        self._writer.writerow(
            [f"{second:.1f}", part, *(f"{row[one.name]:g}" if one.name in row else "" for one in COLUMNS)]
        )
        self._file.flush()

    def curve(self, part: str, column: str) -> list[tuple[float, float]]:
        """The values that there are, with their seconds."""
        return [(second, row[column]) for second, row in self.rows.get(part, []) if column in row]

    def close(self) -> None:
        self._file.close()


class NodeWatch:
    """Looks at a node, each time it is asked to."""

    def __init__(self, node: SoakNode, probe: Probe) -> None:
        self._node = node
        self._probe = probe
        self._client: Client | None = None
        self._looks = 0
        self._replies: deque[list[float]] = deque(maxlen=LATENCIES_OF)  # of the probe

    def look(self) -> Row:
        self._replies.append(self._probe.take())
        row = of_process(self._node.process) | latencies([one for some in self._replies for one in some])
        row["disk_bytes"] = _bytes_on_disk(self._node.directory)
        figures = self._figures()
        row |= {name: total(figures, figure) for name, figure in FIGURES.items() if _is_shown(figures, figure)}
        self._looks += 1
        if self._looks % SCRAPE_EVERY == 0:
            self._scrape()
        return row

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _figures(self) -> Mapping[str, str]:
        """STATS; empty if the node does not answer at once."""
        try:
            if self._client is None:
                self._client = Client(HOST, self._node.port, ANSWER_S)
            answer = self._client.call(b"STATS")
        except NodeError:
            return {}
        except Unreachable:
            self.close()
            return {}
        assert isinstance(answer, bytes)
        return parse(answer.decode())

    def _scrape(self) -> None:
        """As a Prometheus would."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self._node.http_port}/metrics", timeout=ANSWER_S) as answer:
                answer.read()
        except (http.client.HTTPException, OSError):
            pass  # it is down, or ends in the middle of the answer


def of_process(server: Server) -> Row:
    """Memory, descriptors and threads; nothing of a process that is not there."""
    place = Path(f"/proc/{server.pid}")
    try:
        lines = (line.partition(":") for line in (place / "status").read_text().splitlines())
        status = {name: rest.split() for name, _, rest in lines}
        return {
            "anon_bytes": 1024.0 * int(status["RssAnon"][0]),
            "rss_bytes": 1024.0 * int(status["VmRSS"][0]),
            "threads": float(status["Threads"][0]),
            "fds": float(len(os.listdir(place / "fd"))),
        }
    except (OSError, KeyError):  # it has ended, or is about to
        return {}


def latencies(seconds: Sequence[float]) -> Row:
    """Of replies."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    return {name: 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))] for name, share in at.items()}


def _is_shown(figures: Mapping[str, str], name: str) -> bool:
    return any(one == name or one.startswith(f"{name}{{") for one in figures)


def _bytes_on_disk(directory: Path) -> float:
    """Of a directory whose files come and go."""
    total_bytes = 0
    for file in directory.rglob("*"):
        try:
            total_bytes += file.stat().st_blocks * DISK_BLOCK
        except FileNotFoundError:
            continue
    return float(total_bytes)
