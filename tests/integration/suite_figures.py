"""The benchmarks' figures: beside the figures that the documentation promises, and compared with an earlier run.

Machines differ, so operations a second are shown but not judged. Each figure has a ratio to a reference that did the
same work in the same run (`suite_reference`), and `baseline.json` keeps the ratios of a good run. A ratio below
SLOWER_MAX of the kept one is a regression. Other work on the machine slows both sides: it raises the ratios of writes,
up to twice, and hardly lowers any.
"""

from __future__ import annotations

import html
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).parent / "baseline.json"
SLOWER_MAX = 0.5
HEADER = (
    *("benchmark", "operations/s", "expected", "P50 ms", "P95 ms", "expected", "P99 ms", "memory MiB", "expected"),
    *("CPU %", "of the reference", "kept", "verdict"),
)
EXPECTED = {  # operations a second at least, P95 in ms at most, memory in MiB at most
    "SET": (1_000, 100, 100),
    "GET": (2_000, 50, 100),
    "Mixed": (800, 80, 100),
    "Connections": (50, 1_000, 200),
    "Replication": (1_000, 500, 100),
}
FAR_REPLICATION = (100, 5_000, 100)  # through a broker on another machine

Figure = dict[str, Any]  # what BenchmarkResult.as_dict returns
Ratios = dict[str, float]  # by benchmark


def expected(name: str) -> tuple[int, int, int] | None:
    far = os.environ.get("MQTT_BROKER_HOST", "localhost") not in ("localhost", "127.0.0.1", "::1")
    if far and name == "Replication":
        return FAR_REPLICATION
    return EXPECTED.get(name)


def read() -> list[Figure]:
    """What the benchmarks of this run reported, in their order."""
    path = Path(os.environ.get("MERKLEKV_TEST_BENCHMARKS", os.devnull))
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_baseline(path: Path = BASELINE) -> Ratios:
    """The ratios of the kept run; empty if none was kept."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def keep(figures: list[Figure], path: Path = BASELINE) -> None:
    """Make these ratios the baseline."""
    path.write_text(json.dumps({one["name"]: one["ratio"] for one in figures if one["ratio"]}, indent=2) + "\n")


def change(one: Figure, kept: Ratios) -> float | None:
    """The ratio by the kept one; None without either."""
    return one["ratio"] / kept[one["name"]] if one["ratio"] and one["name"] in kept else None


def verdict(change: float | None) -> str:
    if change is None:
        return ""
    if change < SLOWER_MAX:
        return f"slower: {change:.2f}"
    return "faster" if change > 1 / SLOWER_MAX else "as before"


def regressions(figures: list[Figure], kept: Ratios) -> list[str]:
    """Benchmarks that became slower, and those of the baseline that are not measured any more, in words."""
    measured = {one["name"]: one["ratio"] for one in figures if one["ratio"]}
    return [
        f"{name}: {measured[name]:.3g} of the reference, which was {before:.3g}: {measured[name] / before:.0%}"
        if name in measured
        else f"{name}: no figure, {BASELINE.name} has one"
        for name, before in kept.items()
        if measured.get(name, 0) / before < SLOWER_MAX
    ]


def rows(figures: list[Figure], kept: Ratios) -> list[list[str]]:
    """The table's cells, in the order of HEADER."""
    return [_row(one, kept) for one in figures]


def _row(one: Figure, kept: Ratios) -> list[str]:
    told = expected(one["name"])
    rate, p95, memory = (f"> {told[0]:,}", f"< {told[1]:,}", f"< {told[2]:,}") if told else ("", "", "")
    return [
        *(one["name"], f"{one['throughput_per_s']:,.0f}", rate, f"{one['p50_ms']:.2f}", f"{one['p95_ms']:.2f}", p95),
        *(f"{one['p99_ms']:.2f}", f"{one['memory_peak_mib']:.0f}", memory, f"{one['cpu_percent']:.0f}"),
        *(f"{ratio:.3g}" if ratio else "" for ratio in (one["ratio"], kept.get(one["name"]))),
        verdict(change(one, kept)),
    ]


def markdown(figures: list[Figure], kept: Ratios) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [HEADER, ["---"] * len(HEADER), *rows(figures, kept)])


def page(figures: list[Figure], kept: Ratios) -> list[str]:
    """The table and its plots, as HTML."""

    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(cells, "td") for cells in rows(figures, kept))
    said = "Latencies are of single operations, or of the group that one was sent in; memory and CPU are the server's."
    return ["<h2>Benchmarks</h2>", f"<table>{line(HEADER, 'th')}{body}</table><p>{said}</p>", _plots(figures, kept)]


def _plots(figures: list[Figure], kept: Ratios) -> str:
    """Rates, latencies, and the change of the ratios, as one SVG."""
    from matplotlib.figure import Figure as Drawing  # takes a second to import

    names = [one["name"] for one in figures]
    drawing = Drawing(figsize=(13, 1.5 + 0.35 * len(names)), layout="constrained")
    rates, latencies, ratios = drawing.subplots(1, 3, sharey=True)
    rates.set(title="Operations a second; strokes: expected", xscale="log")
    rates.barh(names, [one["throughput_per_s"] for one in figures])
    told = {name: limits[0] for name in names if (limits := expected(name))}
    rates.scatter(told.values(), told.keys(), marker="|", s=200, color="red")
    latencies.set(title="Latency in milliseconds", xscale="log")
    for percentile in ("p50", "p95", "p99"):
        latencies.plot([one[f"{percentile}_ms"] for one in figures], names, "o", label=percentile.upper())
    latencies.legend()
    ratios.set_title("Ratio to the reference by the kept one; line: regression")
    ratios.barh(names, [change(one, kept) or 0 for one in figures])
    ratios.axvline(SLOWER_MAX, color="red")
    rates.invert_yaxis()
    text = io.StringIO()
    drawing.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
