"""The report's plots of the benchmarks' figures, as SVG to be put into a page."""

from __future__ import annotations

import io

import suite_figures
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from suite_figures import Figures

BLUE, ORANGE, RED = "#4c78a8", "#f2a541", "#b3261e"


def draw(figures: Figures, kept: dict[str, float]) -> list[str]:
    """Rates, latencies, and the ratios to the reference by those that were kept."""
    compared = [one for one in figures if suite_figures.verdict(one, kept)]
    return [_rates(figures), _latencies(figures), *([_ratios(compared, kept)] if compared else [])]


def _rates(figures: Figures) -> str:
    drawing, axes = _axes("Operations a second; strokes are what users are told to expect", figures)
    axes.barh(range(len(figures)), [one["throughput_per_s"] for one in figures], color=BLUE, height=0.6)
    for at, one in enumerate(figures):
        if told := suite_figures.expected(one["name"]):
            axes.plot([told.rate] * 2, [at - 0.4, at + 0.4], color=RED, linewidth=2)
    axes.set_xscale("log")
    return _svg(drawing)


def _latencies(figures: Figures) -> str:
    drawing, axes = _axes("Latency in milliseconds", figures)
    for name, label, color in (("p50_ms", "P50", BLUE), ("p95_ms", "P95", ORANGE), ("p99_ms", "P99", RED)):
        axes.plot([one[name] for one in figures], range(len(figures)), "o", color=color, label=label)
    axes.set_xscale("log")
    axes.legend()
    return _svg(drawing)


def _ratios(figures: Figures, kept: dict[str, float]) -> str:
    drawing, axes = _axes("Ratio to the reference, by the one that was kept; left of the line is a regression", figures)
    axes.barh(range(len(figures)), [one["ratio"] / kept[one["name"]] for one in figures], color=BLUE, height=0.6)
    axes.axvline(suite_figures.SLOWER_MAX, color=RED)
    return _svg(drawing)


def _axes(title: str, figures: Figures) -> tuple[Figure, Axes]:
    drawing = Figure(figsize=(10, 1 + 0.35 * len(figures)), layout="constrained")
    axes = drawing.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_yticks(range(len(figures)), [one["name"] for one in figures])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    return drawing, axes


def _svg(drawing: Figure) -> str:
    text = io.StringIO()
    drawing.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
