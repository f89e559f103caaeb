"""What a soak has found: a table for the screen, a picture of the curves, and a page with all of it."""

from __future__ import annotations

import math
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import matplotlib as mpl
from rich.table import Table

from merklekv.output import counted

from .curves import COLUMNS, Column, Curves
from .faults import Event
from .flat import Change, change

JUDGED_FROM_S: Final = 600.0  # a shorter run is all warm-up
GAP_S: Final = 4.0  # a curve that has no value for so long is not drawn
PICTURE, PAGE = "soak.png", "report.md"
COLORS: Final = {"node-1": "tab:blue", "node-2": "tab:orange", "node-3": "tab:green", "broker": "tab:gray"}
LOGARITHMIC: Final = ("outbox_events", "p50_ms", "p99_ms", "max_ms")


@dataclass
class Outcome:
    """Of a run."""

    seed: str
    seconds: float  # under load
    problems: Sequence[str]
    events: Sequence[Event]
    curves: Curves
    acknowledged: int  # writes in the accounts
    errors: Mapping[str, int] = field(default_factory=dict)  # answers to honest writers, by their beginning
    healed_s: float | None = None  # from the end of load and faults until all was equal
    notes: Sequence[str] = ()  # what could not be done on this machine

    @property
    def is_judged(self) -> bool:
        """Whether a curve that grows fails the run."""
        return self.seconds >= JUDGED_FROM_S

    def change(self, part: str, column: Column) -> Change | None:
        slack = float("inf") if column.slack is None else column.slack
        return change(self.curves.curve(part, column.name), self.seconds, slack)

    def growing(self) -> list[str]:
        """The curves that grow, in words."""
        found = []
        for part in self.curves.rows:
            for column in COLUMNS:
                one = self.change(part, column)
                if one is not None and not one.is_flat:
                    found.append(f"{part}: {column.title}: {_shown(one, column)}")
        return found

    @property
    def has_passed(self) -> bool:
        return not self.problems and not (self.is_judged and self.growing())

    def verdict(self) -> str:
        """A sentence for each thing that was checked."""
        words = [f"{self.acknowledged:,} writes acknowledged, {counted(len(self.events), 'fault')}, seed {self.seed}."]
        if self.healed_s is not None:
            words.append(f"All nodes were equal {self.healed_s:.1f} s after the end.")
        words.append(f"{counted(len(self.problems), 'problem')}." if self.problems else "No problem.")
        if not self.is_judged:
            words.append(f"Curves count from {JUDGED_FROM_S / 60:.0f} minutes on.")
        elif growing := self.growing():
            words.append(f"Growing: {'; '.join(growing)}.")
        else:
            words.append("No curve grows.")
        return " ".join(words)


def make_table(outcome: Outcome) -> Table:
    """Each curve of each part: its median in the second sixth of the run, and in the last."""
    parts = list(outcome.curves.rows)
    table = Table(title=f"Soak of {outcome.seconds / 60:.1f} minutes: medians of the second and the last sixth")
    table.add_column("curve")
    for part in parts:
        table.add_column(part, justify="right")
    for column in COLUMNS:
        changes = [outcome.change(part, column) for part in parts]
        if any(changes):
            table.add_row(column.title, *(_cell(one, column) for one in changes))
    return table


def write(outcome: Outcome, place: Path) -> Path:
    """Writes the page and its picture; where the page is."""
    draw(outcome, place / PICTURE)
    did = "passed" if outcome.has_passed else "failed"
    lines = [f"# Soak: {did}", "", outcome.verdict(), ""]
    lines += [f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.platform()}, Python {platform.python_version()}", ""]
    lines += [f"![]({PICTURE})", ""]
    if outcome.problems:
        lines += ["## Problems", "", *(f"    {line}" for text in outcome.problems for line in text.splitlines()), ""]
    if outcome.notes:
        lines += ["## Left out", "", *(f"- {note}" for note in outcome.notes), ""]
    lines += ["## Curves: medians of the second and the last sixth", "", *_markdown(outcome), ""]
    lines += ["## Faults", "", "| where | what | times |", "|---|---|---|"]
    counts = Counter((event.where, event.what) for event in outcome.events)
    lines += [f"| {where} | {what} | {times} |" for (where, what), times in sorted(counts.items())]
    lines += ["", "## Errors that honest writers got", "", "| answer | times |", "|---|---|"]
    lines += [f"| `{text}` | {times:,} |" for text, times in sorted(outcome.errors.items())]
    page = place / PAGE
    page.write_text("\n".join(lines) + "\n")
    return page


def draw(outcome: Outcome, path: Path) -> None:
    """All curves below each other over the minutes of the run, and below them the faults."""
    mpl.use("Agg")
    from matplotlib import pyplot  # only now: it settles how it draws when it is imported

    count = len(COLUMNS) + 1
    drawing, axes = pyplot.subplots(count, 1, sharex=True, figsize=(14, 1.7 * count), layout="constrained")
    for ax, column in zip(axes, COLUMNS, strict=False):
        for part in outcome.curves.rows:
            curve = list(_with_gaps(outcome.curves.curve(part, column.name)))
            minutes, values = [at / 60 for at, _ in curve], [value / column.scale for _, value in curve]
            ax.plot(minutes, values, label=part, color=COLORS[part], linewidth=0.8)
        if column.name in LOGARITHMIC:
            ax.set_yscale("symlog" if column.name == "outbox_events" else "log")
        else:
            ax.set_ylim(bottom=0)
        ax.set_title(column.title, fontsize="small", loc="left")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize="small", loc="upper right", ncols=len(COLORS))
    lanes = sorted({event.where for event in outcome.events})
    for number, lane in enumerate(lanes):
        spans = [(one.began / 60, (one.ended - one.began) / 60) for one in outcome.events if one.where == lane]
        axes[-1].broken_barh(spans, (number - 0.4, 0.8), color=COLORS.get(lane, "tab:red"), alpha=0.6)
    axes[-1].set_yticks(range(len(lanes)), lanes, fontsize="small")
    axes[-1].set_title("faults", fontsize="small", loc="left")
    axes[-1].set_xlabel("minutes")
    drawing.savefig(path, dpi=80)
    pyplot.close(drawing)


def _with_gaps(curve: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The curve, interrupted where there was nothing to see."""
    before = 0.0
    for at, value in curve:
        if at - before > GAP_S:
            yield before, math.nan
        yield at, value
        before = at


def _markdown(outcome: Outcome) -> list[str]:
    parts = list(outcome.curves.rows)
    lines = [f"| curve | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for column in COLUMNS:
        changes = [outcome.change(part, column) for part in parts]
        cells = [
            "" if one is None else f"**{_shown(one, column)}**" if not one.is_flat else _shown(one, column)
            for one in changes
        ]
        lines.append(f"| {column.title} | {' | '.join(cells)} |")
    return lines


def _cell(one: Change | None, column: Column) -> str:
    if one is None:
        return ""
    return _shown(one, column) if one.is_flat else f"[bold red]{_shown(one, column)}[/]"


def _shown(one: Change, column: Column) -> str:
    before, after = one.before / column.scale, one.after / column.scale
    digits = 1 if max(before, after) < 1000 and (column.scale != 1 or column.name.endswith("_ms")) else 0
    return f"{before:,.{digits}f} to {after:,.{digits}f}"
