"""What the comparison measures with, and what it finds: sizes, figures, and the helpers that its modules share."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from load import load

from merklekv.harness.process import Node, Server, wait_until
from merklekv.metrics import parse
from merklekv.net.client import Client


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    requests: int  # of one run of redis-benchmark
    requests_alone: int  # of one run with a single client
    rounds: int  # of such runs, one on each server
    keys: int  # in "a million keys"
    loaded: int  # by the long load
    probe_s: float  # how long latency is watched, during checkpoints and between them
    probe_memtable: str  # in that


SIZES = {
    "full": Size(200_000, 20_000, 7, 1_000_000, 5_000_000, 15, "64MiB"),
    "quick": Size(50_000, 5_000, 3, 200_000, 1_000_000, 4, "16MiB"),
    "tiny": Size(500, 100, 1, 2_000, 100_000, 0.5, "64KiB"),
}


@dataclass(frozen=True)
class Settings:
    """What all measurements are told."""

    size: Size
    directory: Path  # temporary, on disk


@dataclass
class Figure:
    """One line of the table: a value and the bound that it has to keep."""

    name: str  # in the JSON, and for --only
    work: str  # for people
    value: float
    bound: float
    at_least: bool  # whether the bound is a lower one
    unit: str
    detail: str = ""
    commands: list[str] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    servers: dict[str, dict[str, float]] = field(default_factory=dict)  # medians of each server that did the work

    @property
    def reached(self) -> bool:
        """Whether the value keeps the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def share(self) -> float:
        """How much of what the bound allows is used up; above 1 it is not kept."""
        return self.bound / self.value if self.at_least else self.value / self.bound


def fill(server: Server, keys: int) -> None:
    """Sets every key below a number (a multiple of 250) once, in random order, and waits for it."""
    load(server, keys, seed=1, show=lambda line: None)


def status(node: Node) -> dict[str, str]:
    """The node's STATS."""
    with Client("127.0.0.1", node.port) as client:
        reply = client.call(b"STATS")
    assert isinstance(reply, bytes)
    return parse(reply.decode())


def settle(node: Node) -> None:
    """Waits until the checkpoints are done, which would otherwise be measured too."""
    wait_until(lambda: status(node)["frozen_memtables"] == "0", seconds=120, what="the checkpoints")


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that so many percent of the samples do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(samples: Sequence[float]) -> float:
    """The middle one, or the mean of the two middle ones."""
    return statistics.median(samples)
