"""Writes the tables of metrics in docs/protocol.md from their declarations.

python scripts/write_metrics.py            write them
python scripts/write_metrics.py --check    exit 1 when they are not what would be written
"""

from __future__ import annotations

import inspect

import generated

from merklekv.metrics import PARTS, declared


def tables() -> str:
    parts = []
    for part in PARTS:
        rows = [
            (f"`{metric.shown_name(name, metric.label.upper())}`", metric.kind, metric.unit, metric.meaning)
            for name, metric in declared(part).items()
        ]
        parts.append(
            f"{inspect.cleandoc(part.__doc__ or '')}\n\n{generated.table(('name', 'kind', 'unit', 'meaning'), *rows)}"
        )
    return "\n" + "\n\n".join(parts) + "\n\n"


if __name__ == "__main__":
    generated.write(generated.DOCS / "protocol.md", tables(), "metrics")
