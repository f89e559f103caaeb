"""Runs a soak: `make soak`.

    make soak                                  an hour
    make soak ARGS="--minutes 5"               shorter; curves count from ten minutes on
    make soak ARGS="--seed 4f2a --minutes 20"  the faults of an earlier run again, as near as timing allows

It ends with status 1 if a write was lost, nodes differ, a node ended by itself, a curve grows, or anything else went
wrong. Curves, logs and the report are in build/soak. Ctrl-C ends it early, with its report.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from rich.console import Console

from merklekv.harness.process import HarnessError

from .report import make_table, write
from .run import Plan, run

PLACE: Final = Path(__file__).parents[2] / "build" / "soak"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long load and faults go on [default: 60]")
    parser.add_argument("--seed", default="", help="of load and faults [default: a new one, which is shown]")
    parser.add_argument("--place", type=Path, default=PLACE, help="where everything goes; what is there is removed")
    given = parser.parse_args()
    plan = Plan(60 * given.minutes, given.seed or secrets.token_hex(4), given.place)
    console = Console(highlight=False, soft_wrap=True)
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: interrupted.set())
    console.print(f"soak of {given.minutes:g} minutes, seed {plan.seed}; Ctrl-C ends it early, with its report")
    try:
        outcome = run(plan, lambda line: console.print(line, markup=False), interrupted)
    except HarnessError as error:
        console.print(f"seed {plan.seed}: {error}", markup=False)
        return 1
    page = write(outcome, plan.place)
    Console(width=None if console.is_terminal else 160).print(make_table(outcome))
    for problem in outcome.problems:
        console.print(problem, markup=False)
    console.print(outcome.verdict(), markup=False)
    console.print(f"{'passed' if outcome.has_passed else 'failed'}: {page}", markup=False)
    return 0 if outcome.has_passed else 1


if __name__ == "__main__":
    sys.exit(main())
