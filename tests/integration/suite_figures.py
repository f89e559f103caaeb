"""The benchmarks' figures: set beside what users of MerkleKV are told to expect, and compared with an earlier run.

Machines differ, so nothing is judged by operations a second. Each figure comes with its ratio to a reference that did
the same work in the same run (`suite_reference`), and `baseline.json` keeps the ratios of a good run. A ratio that
falls below SLOWER_MAX of the kept one is a regression. Other work on the machine makes ratios of writes rise, up to
twice, because it slows both; it hardly makes one fall. What is expected, on the other hand, is shown and not judged: a
slow machine is nobody's mistake.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import LOOPBACK

BASELINE = Path(__file__).parent / "baseline.json"
SLOWER_MAX = 0.5
HEADER = (
    *("benchmark", "operations/s", "expected", "P50 ms", "P95 ms", "expected", "P99 ms", "memory MiB", "expected"),
    *("CPU %", "of the reference", "kept", "verdict"),
)

Figures = list[dict[str, Any]]


@dataclass(frozen=True)
class Expected:
    """What users are told: at least so many operations a second, at most so much time and memory."""

    rate: float
    p95_ms: float
    memory_mib: float


EXPECTED = {
    "SET": Expected(1_000, 100, 100),
    "GET": Expected(2_000, 50, 100),
    "Mixed": Expected(800, 80, 100),
    "Connections": Expected(50, 1_000, 200),
    "Replication": Expected(1_000, 500, 100),
}
FAR_REPLICATION = Expected(100, 5_000, 100)  # through a broker that is not on this machine


def expected(name: str) -> Expected | None:
    """What users are told of this benchmark, if anything."""
    if name == "Replication" and os.environ.get("MQTT_BROKER_HOST", LOOPBACK[0]) not in LOOPBACK:
        return FAR_REPLICATION
    return EXPECTED.get(name)


def read(path: Path) -> Figures:
    """What the benchmarks reported, in their order; nothing when none ran."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_baseline(path: Path = BASELINE) -> dict[str, float]:
    """The ratios that were kept, by benchmark."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def keep(figures: Figures, path: Path = BASELINE) -> None:
    """Make these ratios the ones to compare with."""
    ratios = {one["name"]: one["ratio"] for one in figures if one.get("ratio")}
    path.write_text(json.dumps(ratios, indent=2) + "\n")


def verdict(one: dict[str, Any], kept: dict[str, float]) -> str:
    """`slower`, `as before`, `faster`; nothing where there is nothing to compare."""
    if not one.get("ratio") or one["name"] not in kept:
        return ""
    change = one["ratio"] / kept[one["name"]]
    if change < SLOWER_MAX:
        return f"slower: {change:.2f}"
    return "faster" if change > 1 / SLOWER_MAX else "as before"


def regressions(figures: Figures, kept: dict[str, float]) -> list[str]:
    """What has become slower, or is not measured any more, in words."""
    found = []
    for one in figures:
        if verdict(one, kept).startswith("slower"):
            ratio, before = one["ratio"], kept[one["name"]]
            found.append(f"{one['name']}: {ratio:.3g} of the reference, which was {before:.3g}: {ratio / before:.0%}")
    measured = {one["name"] for one in figures if one.get("ratio")}
    return found + [f"{name}: no figure, {BASELINE.name} has one" for name in kept if name not in measured]


def rows(figures: Figures, kept: dict[str, float]) -> list[list[str]]:
    """The table's cells, in the order of HEADER."""
    return [_row(one, kept) for one in figures]


def _row(one: dict[str, Any], kept: dict[str, float]) -> list[str]:
    told = expected(one["name"])
    before = kept.get(one["name"])
    return [
        *(one["name"], f"{one['throughput_per_s']:,.0f}", f"> {told.rate:,.0f}" if told else ""),
        *(f"{one['p50_ms']:.2f}", f"{one['p95_ms']:.2f}", f"< {told.p95_ms:,.0f}" if told else ""),
        *(f"{one['p99_ms']:.2f}", f"{one['memory_peak_mib']:.0f}", f"< {told.memory_mib:,.0f}" if told else ""),
        *(f"{one['cpu_percent']:.0f}", f"{one['ratio']:.3g}" if one.get("ratio") else ""),
        *(f"{before:.3g}" if before else "", verdict(one, kept)),
    ]


def markdown(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table for a terminal, and for whatever shows Markdown."""
    cells = list(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells, ["---"] * len(cells), *lines])
