"""Writes the tables of metrics in docs/protocol.md from their declarations.

python scripts/write_metrics.py            write them
python scripts/write_metrics.py --check    exit 1 when they are not what would be written
"""

from __future__ import annotations

import inspect

import generated

from merklekv.metrics import PARTS, Metric, declared
from merklekv.web.metrics import PREFIX, full_name


def tables() -> str:
    parts = []
    for part in PARTS:
        rows = [
            (_in_stats(name, metric), _in_prometheus(name, metric), metric.kind, metric.unit, metric.meaning)
            for name, metric in declared(part).items()
        ]
        head = ("in STATS", "in /metrics", "kind", "unit", "meaning")
        parts.append(f"{inspect.cleandoc(part.__doc__ or '')}\n\n{generated.table(head, *rows)}")
    return "\n" + "\n\n".join(parts) + "\n\n"


def _in_stats(name: str, metric: Metric) -> str:
    return "" if metric.kind == "histogram" else f"`{metric.shown_name(name, metric.label.upper())}`"


def _in_prometheus(name: str, metric: Metric) -> str:
    """Without `merklekv_`, which all have."""
    full = full_name(name, metric).removeprefix(PREFIX)
    label = f"{{{metric.label}}}" if full and metric.label else ""
    return f"`{full}{label}`" if full else ""


if __name__ == "__main__":
    generated.write(generated.DOCS / "protocol.md", tables(), "metrics")
