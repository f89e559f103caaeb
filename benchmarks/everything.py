"""All figures of this machine in one report: the comparison with Redis, replication, exchanges, and rivals.

    make bench                                     everything, 40 to 60 minutes on an idle machine
    make bench ARGS=--quick                        less of everything, 6 to 10 minutes; expect noise
    make bench ARGS="--part replication"           one part; may be given several times

Runs compare.py, replication.py, exchange.py and rivals.py one after the other, each as it runs alone, and joins what
they found.
Below benchmarks/results/ are then report.md with all tables, the plots that it shows, and each part's figures as JSON.
The exit status is 0 whatever the figures are, and 1 when a part does not work; the report has the others all the same.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import joined
from figure import SIZES
from report import RESULTS

HERE = Path(__file__).parent
EVENTS = {"full": 300_000, "quick": 50_000, "tiny": 400}
TINY_WORKS = ["latency", "sustained", "backlog"]


def comparison(given: argparse.Namespace) -> list[str]:
    """The command that compares with Redis."""
    return ["compare.py", "--size", given.size, "--directory", str(given.directory), "--results", str(given.results)]


def replication(given: argparse.Namespace) -> list[str]:
    """The command that measures replication."""
    works = TINY_WORKS if given.size == "tiny" else []
    figures = str(given.results / joined.REPLICATION)
    return ["replication.py", *works, "--events", str(EVENTS[given.size]), "--json", figures]


def exchanges(given: argparse.Namespace) -> list[str]:
    """The command that measures exchanges."""
    return ["exchange.py", "--size", given.size, "--directory", str(given.directory), "--results", str(given.results)]


def rivals(given: argparse.Namespace) -> list[str]:
    """The command that measures NATS and etcd, too."""
    return ["rivals.py", "--size", given.size, "--directory", str(given.directory), "--results", str(given.results)]


PARTS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "comparison": comparison,
    "replication": replication,
    "exchange": exchanges,
    "rivals": rivals,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="measure this part")
    parser.add_argument("--size", choices=SIZES, default="full", help="how much is measured; tiny only tries it out")
    parser.add_argument("--quick", dest="size", action="store_const", const="quick", help="the same as --size quick")
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp"), help="where the data goes for the time: on a disk"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the report goes")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    given.results.mkdir(parents=True, exist_ok=True)
    failed = []
    began = time.time()
    for part in given.part or PARTS:
        print(f"== {part} ==", flush=True)
        script, *words = PARTS[part](given)
        if subprocess.run([sys.executable, HERE / script, *words], check=False).returncode:
            failed.append(part)
    page = joined.write(given.results, given.directory, since=began, failed=failed)
    print(f"written: {page}")
    if failed:
        sys.exit(f"did not work, see above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
