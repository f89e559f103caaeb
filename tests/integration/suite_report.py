"""The report of a run: one HTML page that needs nothing beside it, plots included.

It is made of what the run left: JUnit XML, coverage XML and the benchmarks' figures; what is missing is left out.
"""

from __future__ import annotations

import html
import os
import platform
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import suite_figures
from suite_figures import Figures

from merklekv.output import counted

SLOWEST = 10
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd }
td + td, th + th { text-align: right } td:last-child { text-align: left }
.good { color: #176d2c } .bad { color: #b3261e }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto; max-height: 30rem } svg { max-width: 100%; height: auto }
"""


@dataclass
class Case:
    """One test, as JUnit XML has it."""

    module: str
    name: str
    seconds: float
    failure: str = ""


@dataclass
class Outcome:
    """What there is to tell about a run."""

    mode: str
    status: int
    seconds: float
    limit_s: int
    cases: list[Case] = field(default_factory=list)
    figures: Figures = field(default_factory=list)
    kept: dict[str, float] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)  # what else went wrong

    @property
    def failed(self) -> list[Case]:
        return [case for case in self.cases if case.failure]

    def __str__(self) -> str:
        result = "passed" if self.status == 0 else f"failed, status {self.status}"
        counts = f"{counted(len(self.cases) - len(self.failed), 'test')} passed, {len(self.failed)} failed"
        return f"mode {self.mode}: {result}; {counts}; {self.seconds:.0f} s of at most {self.limit_s} s"


def read_cases(junit: Path) -> list[Case]:
    """The tests of a run in their order; none when it was ended before it could write them."""
    if not junit.exists():
        return []
    cases: dict[tuple[str, str], Case] = {}
    for one in ElementTree.parse(junit).iter("testcase"):
        module, _, group = one.get("classname", "").partition(".Test")
        name = f"Test{group}::{one.get('name')}" if group else str(one.get("name"))
        case = cases.setdefault((module, name), Case(module.rpartition(".")[2], name, 0.0))
        case.seconds += float(one.get("time", 0))
        for broken in (*one.findall("failure"), *one.findall("error")):
            case.failure += broken.text or broken.get("message") or ""
    return list(cases.values())


def write_html(outcome: Outcome, path: Path, coverage: Path | None = None) -> None:
    """The page; `coverage` is the coverage XML."""
    parts = [*_head(outcome), *_failures(outcome.failed)]
    if outcome.figures:
        parts += _benchmarks(outcome)
    parts += _modules(outcome.cases)
    if coverage is not None and coverage.exists():
        parts += _coverage(coverage)
    title = html.escape(f"Integration tests, mode {outcome.mode}")
    page = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n'
    path.write_text(page + "\n".join(parts) + "\n</html>\n", encoding="utf-8")


def _head(outcome: Outcome) -> list[str]:
    machine = f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    good = "good" if outcome.status == 0 else "bad"
    metadata = [f'<p class="bad">{html.escape(note)}</p>' for note in outcome.metadata]
    return [f'<h1 class="{good}">{html.escape(str(outcome))}</h1>', f"<p>{html.escape(machine)}</p>", *metadata]


def _failures(failed: Iterable[Case]) -> list[str]:
    shown = [
        f"<h3>{html.escape(f'{case.module}::{case.name}')}</h3><pre>{html.escape(case.failure)}</pre>"
        for case in failed
    ]
    return ["<h2>Failed</h2>", *shown] if shown else []


def _benchmarks(outcome: Outcome) -> list[str]:
    import suite_plots  # only now: matplotlib takes its time

    table = _table(suite_figures.HEADER, suite_figures.rows(outcome.figures, outcome.kept))
    said = "Latencies are of single operations, or of the group that one was sent in; memory and CPU are the server's."
    return ["<h2>Benchmarks</h2>", table, f"<p>{said}</p>", *suite_plots.draw(outcome.figures, outcome.kept)]


def _modules(cases: list[Case]) -> list[str]:
    modules: dict[str, list[Case]] = {}
    for case in cases:
        modules.setdefault(case.module, []).append(case)
    rows = [
        (name, str(len(of)), str(sum(bool(case.failure) for case in of)), f"{sum(case.seconds for case in of):.1f}")
        for name, of in modules.items()
    ]
    slow = sorted(cases, key=lambda case: -case.seconds)[:SLOWEST]
    return [
        *("<h2>Tests</h2>", _table(("module", "tests", "failed", "seconds"), rows)),
        *("<h3>The slowest</h3>", _table(("test", "seconds"), [(case.name, f"{case.seconds:.1f}") for case in slow])),
    ]


def _coverage(xml: Path) -> list[str]:
    root = ElementTree.parse(xml).getroot()
    packages = [(str(one.get("name")), _percent(one)) for one in root.iter("package")]
    rows = [("all", _percent(root)), *packages]
    link = "Lines that ran, in the servers too; <a href='htmlcov/index.html'>line by line</a>."
    return ["<h2>Coverage</h2>", f"<p>{link}</p>", _table(("package", "lines"), rows)]


def _percent(element: ElementTree.Element) -> str:
    return f"{100 * float(element.get('line-rate', 0)):.0f} %"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + "\n".join([line(header, "th"), *(line(cells, "td") for cells in rows)]) + "</table>"
