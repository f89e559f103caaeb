"""The figures of this machine: MerkleKV against Redis, and what else it promises to keep within bounds.

    python benchmarks/compare.py                 everything, some fifteen minutes on an idle machine
    python benchmarks/compare.py --quick         less of everything, some three minutes; expect noise
    python benchmarks/compare.py --only get-50   one row; may be given several times
    python benchmarks/compare.py --list          the rows there are

Prints a table, and writes figures.json, figures.png and servers.png below benchmarks/results/.  The exit status is 0
whatever the figures are; only what does not work at all is an error.  benchmarks/README.md says how to read it.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import checkpoints
import million
import publish
import report
import space
import versus
from figure import SIZES, Figure, Settings
from load import load, summarize
from nodes import make_node
from rich.console import Console

SLOWEST_WINDOW_MIN = 0.7
LOAD_MEMORY_MAX_MB = {"64MiB": 500.0, "16MiB": 200.0}


def long_load(memtable_size: str, settings: Settings) -> list[Figure]:
    """Millions of keys in random order: does the pace last, and what memory does it take?"""
    keys = settings.size.loaded
    with make_node(
        settings.directory / f"load-{memtable_size}", durability="everysec", memtable_size=memtable_size
    ) as node:
        summary = summarize(load(node, keys, seed=1, show=lambda line: None))
    commands = [f"python benchmarks/load.py --keys {keys} --memtable-size {memtable_size}"]
    memory = summary["peak_private_bytes"] / 1e6
    bound = LOAD_MEMORY_MAX_MB[memtable_size]
    rates = (
        f"first {summary['first_window_per_s']:,.0f}/s, median {summary['median_window_per_s']:,.0f}/s, "
        f"slowest {summary['slowest_window_per_s']:,.0f}/s"
    )
    name, work = f"load-{memtable_size}", f"load of {keys:,} keys, memtable_size {memtable_size}"
    pace = Figure(
        name,
        f"{work}: slowest window",
        summary["slowest_to_first"],
        SLOWEST_WINDOW_MIN,
        True,
        "x first",
        rates,
        commands,
    )
    return [pace, Figure(f"memory-{name}", f"{work}: private memory", memory, bound, False, "MB", "", commands)]


MEASUREMENTS: dict[str, Callable[[Settings], list[Figure]]] = {
    "load": partial(long_load, "64MiB"),
    "load-16MiB": partial(long_load, "16MiB"),
    "checkpoint-always": partial(checkpoints.measure, "always"),
    "checkpoint-everysec": partial(checkpoints.measure, "everysec"),
    "million": million.measure,
    "idle": million.idle,
    "space": space.measure,
    "publish": publish.measure,
}
ROWS = {row.name: row for row in versus.ROWS}


def measure(names: list[str], settings: Settings) -> Iterator[Figure]:
    """The figures of these rows, as they come."""
    yield from versus.measure([row for name, row in ROWS.items() if name in names], settings)
    for name, work in MEASUREMENTS.items():
        if name in names:
            yield from work(settings)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*ROWS, *MEASUREMENTS]
    parser.add_argument("--only", action="append", choices=names, metavar="ROW", help="measure this row; see --list")
    parser.add_argument("--list", action="store_true", help="show the rows and end")
    parser.add_argument(
        "--size", choices=SIZES, default="full", help="how much is measured [full]; tiny only tries it out"
    )
    parser.add_argument("--quick", dest="size", action="store_const", const="quick", help="the same as --size quick")
    parser.add_argument(
        "--directory", default="/var/tmp", help="where the data goes for the time: on a disk [/var/tmp]"
    )
    parser.add_argument("--keys", type=int, help="keys in the row `million`, a multiple of 250")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="where the JSON and the plot go")
    options = parser.parse_args()
    options.only = options.only or names
    if options.list:
        print("\n".join(names))
        raise SystemExit
    return options


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that servers end and data goes, as for Ctrl-C
    console = Console(width=None if sys.stdout.isatty() else report.WIDTH)
    figures = []
    with tempfile.TemporaryDirectory(prefix="merklekv-", dir=options.directory) as directory:
        where = report.machine(Path(directory))
        size = replace(SIZES[options.size], keys=options.keys) if options.keys else SIZES[options.size]
        for figure in measure(options.only, Settings(size, Path(directory))):
            console.print(f"{figure.work}: {figure.value:.2f} {figure.unit}", style="dim", highlight=False)
            figures.append(figure)
    report.print_table(figures, where, console)
    options.results.mkdir(parents=True, exist_ok=True)
    report.write_json(figures, where, options.results / "figures.json")
    report.plot(figures, where, options.results / "figures.png")
    written = ["figures.json", "figures.png"]
    if compared := [figure for figure in figures if figure.servers]:
        report.plot_servers(compared, where, options.results / "servers.png")
        written.append("servers.png")
    console.print(f"written to {options.results}: {', '.join(written)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
