"""What the comparison found, as a table on the terminal, a JSON file and a plot."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path

import matplotlib as mpl
from figure import Figure
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

import merklekv

RESULTS = Path(__file__).parent / "results"
WIDTH = 160  # of a table that goes to a file or a log
REACHED, MISSED = "tab:green", "tab:red"
COLORS = {"Redis": "tab:red", "pure": "tab:blue", "compiled": "tab:green", "null": "tab:gray"}  # of versus.py's servers

LONGEST = 4  # bar of a ratio: the null server would make all others short
RATIOS = ("cpu_ratio", "per_s_ratio")  # of a server to Redis


def machine(directory: Path) -> dict[str, str]:
    """What the figures were measured on."""
    model = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "processor": f"{os.cpu_count()} x {model[0] if model else platform.machine()}",
        "system": platform.platform(),
        "disk": disk_of(directory),
        "python": platform.python_version(),
        "redis": _version("redis-server"),
        "merklekv": merklekv.__version__,
    }


def disk_of(path: Path) -> str:
    """The device and file system under a path, as /proc/mounts names them."""
    mounts = [line.split()[:3] for line in _lines("/proc/mounts")]
    where = str(path.resolve())
    above = [mount for mount in mounts if where == mount[1] or where.startswith(mount[1].rstrip("/") + "/")]
    device, _, kind = max(above, key=lambda mount: len(mount[1]))
    return f"{kind} on {device}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _version(program: str) -> str:
    """What a program says about itself; nothing where it is not needed and not installed."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout.strip()
    except FileNotFoundError:
        return ""


def print_table(figures: list[Figure], where: dict[str, str], console: Console) -> None:
    """The table, and below it the commands that it was measured with."""
    table = Table(title="MerkleKV, measured", caption=f"{where['processor']}, {where['disk']}, {where['redis']}")
    for heading in ("row", "work", "figure", "bound", ""):
        table.add_column(
            heading, justify="right" if heading in ("figure", "bound") else "left", no_wrap=heading != "work"
        )
    table.add_column("detail", overflow="fold")
    for figure in figures:
        bound = f"{'>=' if figure.at_least else '<='} {figure.bound:g} {figure.unit}"
        verdict = "[green]reached[/]" if figure.reached else "[bold red]missed[/]"
        value = f"{figure.value:.2f} {figure.unit}"
        table.add_row(figure.name, figure.work, value, bound, verdict, figure.detail)
    console.print(table)
    console.print("[bold]Commands[/]")
    for command in dict.fromkeys(command for figure in figures for command in figure.commands):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def write_json(figures: list[Figure], where: dict[str, str], path: Path) -> None:
    """Everything, the single samples too."""
    rows = [vars(figure) | {"reached": figure.reached} for figure in figures]
    path.write_text(json.dumps({"machine": where, "figures": rows}, indent=1) + "\n")


def plot(figures: list[Figure], where: dict[str, str], path: Path) -> None:
    """Ratios to Redis with their bounds, and the other figures as multiples of theirs."""
    mpl.use("Agg")
    from matplotlib import pyplot  # only now: it settles how it draws when it is imported

    ratios = [figure for figure in figures if figure.unit == "x Redis"]
    others = [figure for figure in figures if figure.unit != "x Redis"]
    panels = [part for part in (ratios, others) if part]
    drawing, axes = pyplot.subplots(
        len(panels),
        1,
        squeeze=False,
        figsize=(10, 2 + 0.5 * len(figures)),
        height_ratios=[len(part) for part in panels],
    )
    for part, (ax,) in zip(panels, axes, strict=True):
        if part is ratios:
            _plot_ratios(ax, part)
        else:
            _plot_shares(ax, part)
    drawing.suptitle(f"{where['processor']}, {where['disk']}, {where['time']}", fontsize="small")
    drawing.tight_layout()
    drawing.savefig(path, dpi=120)
    pyplot.close(drawing)


def plot_servers(figures: list[Figure], where: dict[str, str], path: Path) -> None:
    """CPU time per request and requests a second of each server, row by row, as multiples of Redis's."""
    mpl.use("Agg")
    from matplotlib import pyplot  # only now: it settles how it draws when it is imported

    names = list(dict.fromkeys(name for figure in figures for name in figure.servers))
    drawing, axes = pyplot.subplots(1, 2, sharey=True, figsize=(16, 2 + 0.25 * len(names) * len(figures)))
    thickness = 0.8 / len(names)
    for ax, what, ratio, label in zip(axes, ("cpu_us", "per_s"), RATIOS, ("{:,.1f} us", "{:,.0f}/s"), strict=True):
        for number, name in enumerate(names):
            medians = [figure.servers[name] for figure in figures]
            places = [at + (number - (len(names) - 1) / 2) * thickness for at in range(len(figures))]
            lengths = [min(one[ratio], LONGEST) for one in medians]
            bars = ax.barh(places, lengths, thickness, label=name, color=COLORS[name], alpha=0.7)
            ax.bar_label(bars, [label.format(one[what]) for one in medians], padding=2, fontsize="x-small")
        ax.axvline(1, color="gray", linestyle=":")
        ax.margins(x=0.15)
    axes[0].set_yticks(range(len(figures)), [figure.work for figure in figures], fontsize="small")
    axes[0].invert_yaxis()
    axes[0].set_xlabel("CPU time per request, as a multiple of Redis's, shorter is better", fontsize="small")
    axes[1].set_xlabel(
        f"requests a second, as a multiple of Redis's, longer is better; bars end at {LONGEST}", fontsize="small"
    )
    axes[1].legend(fontsize="small")
    drawing.suptitle(f"{where['processor']}, {where['disk']}, {where['time']}", fontsize="small")
    drawing.tight_layout()
    drawing.savefig(path, dpi=120)
    pyplot.close(drawing)


def _plot_ratios(ax: Axes, figures: list[Figure]) -> None:
    _bars(ax, figures, [figure.value for figure in figures])
    for at, figure in enumerate(figures):
        ax.plot(figure.samples, [at] * len(figure.samples), "k.", markersize=4)
        ax.plot([figure.bound, figure.bound], [at - 0.4, at + 0.4], "k-", linewidth=2)
    ax.axvline(1, color="gray", linestyle=":")
    ax.set_xlabel(
        "requests a second, as a multiple of Redis's; dots are pairs of runs, strokes bounds", fontsize="small"
    )


def _plot_shares(ax: Axes, figures: list[Figure]) -> None:
    _bars(ax, figures, [figure.share for figure in figures])
    ax.axvline(1, color="black", linewidth=2)
    ax.set_xscale("log")
    ax.set_xlabel("share of what the bound allows, shorter is better; the stroke is the bound", fontsize="small")


def _bars(ax: Axes, figures: list[Figure], lengths: list[float]) -> None:
    ax.barh(
        range(len(figures)), lengths, color=[REACHED if figure.reached else MISSED for figure in figures], alpha=0.7
    )
    names = [f"{figure.work} ({'at least' if figure.at_least else 'at most'} {figure.bound:g})" for figure in figures]
    ax.set_yticks(range(len(figures)), names, fontsize="small")
    ax.invert_yaxis()
