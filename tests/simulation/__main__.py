"""The simulator by itself, for long runs, on one core:

    python -m tests.simulation --seeds 20000 --first 300     20,000 histories from the 300th on
    python -m tests.simulation --minutes 30                  as many as there is time for
    python -m tests.simulation --seed 1234                   one history; one that fails is shrunk and shown
    python -m tests.simulation --mutations                   in how many histories each mistake is found
    python -m tests.simulation --clauses                     each clause of the deletion rule: what fails without it
    python -m tests.simulation --without "6 holder behind"   its histories without it; with --seed, that one

It ends with status 1 if anything failed; every failure is shown as the short history that still fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Final

from .clauses import CLAUSES, Clause, find_clause, without
from .mutations import MUTATIONS, applied, seeds_of
from .run import run_seed, shrink

TOLD_EVERY_S: Final = 20.0
FAILURES_MAX: Final = 5


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def one(seed: str, trace: bool) -> int:
    """One history, in full if it fails."""
    verdict = run_seed(seed)
    if trace:
        say(verdict.trace)
    elif verdict.problems:
        say(f"{verdict}\n\nshrunk:\n{shrink(verdict)}")
    else:
        say(f"seed {seed}: {len(verdict.history.steps)} steps, nothing wrong")
    return int(bool(verdict.problems))


def many(first: int, count: int, minutes: float) -> int:
    """Histories one after the other, with what they have met."""
    began = told = time.monotonic()
    failures = done = 0
    crashes: Counter[str] = Counter()
    for seed in range(first, first + count):
        verdict = run_seed(str(seed))
        crashes.update(verdict.crashes)
        done += 1
        if verdict.problems:
            failures += 1
            say(f"seed {seed} fails:\n{shrink(verdict)}")
        now = time.monotonic()
        if now - told > TOLD_EVERY_S:
            told = now
            say(f"{done} histories, {done / (now - began):.1f}/s, {failures} failed")
        if failures >= FAILURES_MAX or now - began > 60 * minutes:
            break
    took_s = time.monotonic() - began
    say(f"{done} histories from {first} in {took_s:.0f} s, {done / took_s:.1f}/s: {failures} failed")
    say("crashes: " + ", ".join(f"{moment or 'any'} {number}" for moment, number in crashes.most_common()))
    return int(failures > 0)


def mutations(first: int, words: str) -> int:
    """In which history each mistake shows."""
    missed = 0
    for mutation in MUTATIONS:
        if words in mutation.name:
            with applied(mutation):
                verdicts = map(run_seed, seeds_of(mutation, first))
                found = next((verdict for verdict in verdicts if verdict.problems), None)
            missed += found is None
            where = "NOT FOUND" if found is None else f"history {found.history.seed}: {found.problems[0][:100]}"
            say(f"{mutation.name}: {where}")
    return int(missed > 0)


def clauses() -> int:
    """Of each clause: a history that fails without it."""
    return max([ablate(one) for one in CLAUSES])


def ablate(left_out: Clause) -> int:
    """Whether its first history does not fail without a clause."""
    with without(left_out):
        found = next((verdict for seed in left_out.seeds if (verdict := run_seed(seed)).problems), None)
    where = "NOTHING FAILS" if found is None else f"history {found.history.seed}: {found.problems[0][:120].strip()}"
    say(f"{left_out.name}: {where}")
    return int(found is None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", help="one history")
    parser.add_argument("--trace", action="store_true", help="of that one, only the digest of all that happened")
    parser.add_argument("--seeds", type=int, default=1 << 40, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--minutes", type=float, default=60.0, help="for how long at most")
    parser.add_argument("--mutations", nargs="?", const="", help="break the code, in the ways whose name has this word")
    parser.add_argument("--clauses", action="store_true", help="leave out each clause of the deletion rule")
    parser.add_argument("--without", metavar="CLAUSE", help="leave out this clause, in its own histories or in --seed")
    given = parser.parse_args()
    if given.clauses:
        return clauses()
    if given.without is not None:
        try:
            left_out = find_clause(given.without)
        except LookupError as problem:
            parser.error(str(problem.args[0]))
        if given.seed is None:
            return 1 - ablate(left_out)
        with without(left_out):
            return one(given.seed, given.trace)
    if given.seed is not None:
        return one(given.seed, given.trace)
    if given.mutations is not None:
        return mutations(given.first, given.mutations)
    return many(given.first, given.seeds, given.minutes)


if __name__ == "__main__":
    sys.exit(main())
