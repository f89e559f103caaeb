"""`merklekv diff`: the keys on which two sources, nodes or closed directories, differ.

Their Merkle trees are compared, and then only the records below what differs; see comparison.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from merklekv_tool.arguments import AsJsonLines, SourceName
from merklekv_tool.comparison import DIFFERENCES, HEADING, Descent, Difference, counts_text, descended
from merklekv_tool.exit_codes import EXIT_PROBLEMS
from merklekv_tool.output import progress, say, say_json, say_result

EXAMPLES: Final = """
Examples:

    merklekv diff 127.0.0.1:7379 127.0.0.1:7380
    merklekv diff ./data ./backup --limit 20
    merklekv diff 127.0.0.1:7379 ./backup --json | jq -r 'select(.differs == "only_a").key'

A line is one key: which side has it, or has it newer, the version on each side, the key. Up to 10,000 are in the order
of their keys; more come as they are found. With --json each line is an object, and the last one, with the counts, is
the only one that has "equal".
"""
SORTED_MAX: Final = 10_000


def diff(
    source_a: SourceName,
    source_b: SourceName,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=0, metavar="N", help="Show so many keys at most; all are counted.", show_default=False
        ),
    ] = None,
    as_json: AsJsonLines = False,
) -> None:
    """Show the keys that two sources do not hold alike; exit status 1 when there are any."""
    counts: Counter[str] = Counter()
    with progress("compare", prints=True) as update, descended(source_a, source_b) as descent:
        for difference in in_order(difference for _, difference in descent.differences()):
            if limit is None or counts.total() < limit:
                if not as_json and not counts:
                    say(f"A is {descent.a.name}\nB is {descent.b.name}\n\n{HEADING}")
                if as_json:
                    say_json(difference.fields())
                else:
                    say(difference.row())
            counts[difference.kind] += 1
            update(descent.buckets_compared, len(descent.buckets))
    _conclude(counts, descent, as_json)
    if counts or not descent.truncations_equal:
        raise typer.Exit(EXIT_PROBLEMS)


def in_order(found: Iterator[Difference]) -> Iterator[Difference]:
    """Up to SORTED_MAX differences by key; more of them as they come, so that none has to wait for the last."""
    first = list(itertools.islice(found, SORTED_MAX + 1))
    if len(first) <= SORTED_MAX:
        first.sort(key=lambda one: one.key)
    yield from first
    yield from found


def _conclude(counts: Counter[str], descent: Descent, as_json: bool) -> None:
    alike = descent.truncations_equal
    fields: dict[str, object] = {kind: counts[kind] for kind in DIFFERENCES}
    text = descent.truncation_text() + counts_text(counts)
    say_result({"equal": alike and not counts, **fields, "truncations_equal": alike}, text, as_json)
