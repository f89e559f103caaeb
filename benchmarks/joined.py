"""The report of everything.py: what compare.py, replication.py, exchange.py and rivals.py have written, on one page.

A part that was not measured in this run is left out, even if an earlier run has left its figures.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import replication
from matplotlib.axes import Axes
from report import machine

COMPARISON, REPLICATION, EXCHANGE, RIVALS = "figures.json", "replication.json", "exchange.json", "rivals.json"
PAGE = "report.md"
UNITS = {"_ms": "ms", "_per_s": "per second", "_percent": "%"}  # of replication's figures, by the end of their names

MISSING = {
    "compiled": "The compiled core is not built: no column for it.",
    "null": "There is no C compiler: no column for the null server.",
}
WORKS = {
    "latency": "a write acknowledged on A until it can be read on B, with 1,000 other writes a second",
    "sustained": "pipelined writes on A, until B has all",
    "slowdown": "pipelined writes on A with replication on, against off",
    "backlog": "writes on A while the broker is down, then up, until B has all",
    "idle": "share of a core that a connected node takes without traffic",
}


def write(results: Path, directory: Path, since: float, failed: list[str]) -> Path:
    """Writes the page about files that are newer than `since` (seconds since 1970); where it is."""
    where = machine(directory)
    lines = ["# Benchmarks", "", "How to read them: benchmarks/README.md in the project.", ""]
    lines += _table(["", ""], [[name, value] for name, value in where.items()])
    if failed:
        lines += [f"**Did not work: {', '.join(failed)}.**", ""]
    parts: dict[str, Callable[[Any, Path], list[str]]] = {
        COMPARISON: _comparison,
        REPLICATION: _replication,
        EXCHANGE: _exchange,
        RIVALS: _rivals,
    }
    for name, part in parts.items():
        file = results / name
        if file.exists() and file.stat().st_mtime >= since:
            lines += part(json.loads(file.read_text()), results)
    page = results / PAGE
    page.write_text("\n".join(lines))
    return page


def _comparison(found: Any, results: Path) -> list[str]:
    lines = ["## Against Redis, and on its own", "", "![](figures.png)", "", *_figures(found["figures"])]
    compared = [figure for figure in found["figures"] if figure["servers"]]
    if compared:
        lines += ["## CPU time and throughput of each server", "", "![](servers.png)", "", *_servers(compared)]
    return lines


def _servers(figures: list[dict[str, Any]]) -> list[str]:
    """A table of what each server took for the same work, and the multiple of what Redis took; what is not there."""
    names = list(figures[0]["servers"])
    lines = [f"{text}\n" for name, text in MISSING.items() if name not in names]
    rows = []
    for figure in figures:
        all_medians = [figure["servers"][name] for name in names]
        cpu = [f"{medians['cpu_us']:,.1f} us ({medians['cpu_ratio']:.2f})" for medians in all_medians]
        rate = [f"{medians['per_s']:,.0f}/s ({medians['per_s_ratio']:.2f})" for medians in all_medians]
        rows.append([f"`{figure['name']}`", *cpu, *rate])
    heads = [f"CPU per request, {name}" for name in names] + [f"rate, {name}" for name in names]
    return [*lines, *_table(["row", *heads], rows)]


def _replication(found: Any, results: Path) -> list[str]:
    _plot_replication(found, results / "replication.png")
    rows = [
        [work, WORKS[work], ", ".join(f"{_words(name)} {value:,}" for name, value in figures.items())]
        for work, figures in found.items()
    ]
    lines = ["## Replication", "", "![](replication.png)", "", *_table(["row", "work", "figures"], rows)]
    return lines + _figures([vars(figure) | {"reached": figure.reached} for figure in replication.judged(found)])


def _exchange(found: Any, results: Path) -> list[str]:
    lines = ["## Exchanges", ""]
    if found["curves"]:
        lines += ["![](exchange.png)", ""]
    if found["figures"]:
        lines += _figures(found["figures"])
    for curve in found["curves"].values():
        rows = [[f"{value:,.0f}" for value in point.values()] for point in curve]
        lines += _table([_words(name) for name in curve[0]], rows)
    return lines


def _rivals(found: Any, results: Path) -> list[str]:
    rows = [
        [
            f"`{row['row']}`",
            name,
            f"{figures['per_s']:,.0f}/s",
            f"{figures['p99_ms']:.2f} ms",
            f"{figures['cpu_us']:.1f} us",
        ]
        for row in found["rows"]
        for name, figures in row["servers"].items()
    ]
    lines = [f"{text}\n" for text in found["missing"]]
    return ["## Beside NATS and etcd", "", *lines, *_table(["row", "server", "rate", "p99", "CPU per request"], rows)]


def _figures(figures: list[dict[str, Any]]) -> list[str]:
    """A table of what has a bound."""
    rows = [
        [
            f"`{figure['name']}`",
            figure["work"],
            f"{figure['value']:,.2f} {figure['unit']}",
            f"{'at least' if figure['at_least'] else 'at most'} {figure['bound']:,.10g}",
            "reached" if figure["reached"] else "**missed**",
            figure["detail"],
        ]
        for figure in figures
    ]
    return _table(["row", "work", "figure", "bound", "", "detail"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [_row(heads), "|---" * len(heads) + "|", *map(_row, rows), ""]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _words(name: str) -> str:
    return name.replace("_per_s", "/s").replace("_", " ")


def _plot_replication(found: dict[str, dict[str, float]], path: Path) -> None:
    """Latency, rates and shares side by side: three units, three scales."""
    mpl.use("Agg")
    from matplotlib import pyplot  # only now: it settles how it draws when it is imported

    bars = {
        unit: {
            f"{work}: {name.removesuffix(ending)}": value
            for work, figures in found.items()
            for name, value in figures.items()
            if name.endswith(ending)
        }
        for ending, unit in UNITS.items()
    }
    if "backlog" in found:
        bars["per second"]["backlog: events"] = found["backlog"]["events"] / found["backlog"]["seconds"]
    drawn = {unit: values for unit, values in bars.items() if values}
    drawing, axes = pyplot.subplots(1, len(drawn), squeeze=False, figsize=(5 * len(drawn), 3), layout="constrained")
    for ax, (unit, values) in zip(axes[0], drawn.items(), strict=True):
        _bars(ax, unit, values)
    drawing.savefig(path, dpi=120)
    pyplot.close(drawing)


def _bars(ax: Axes, unit: str, values: dict[str, float]) -> None:
    shown = ax.barh(range(len(values)), list(values.values()), color="tab:blue", alpha=0.7)
    labels = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values.values()]
    ax.bar_label(shown, labels, padding=2, fontsize="small")
    ax.set_yticks(range(len(values)), list(values), fontsize="small")
    ax.invert_yaxis()
    ax.margins(x=0.25)
    ax.set_xlabel(unit)
