"""`merklekv diff`: the keys on which two sources, nodes or closed directories, differ.

Both Merkle trees are compared, and then only the heads of the records in the buckets that differ: the cost follows the
difference, beside 1.5 MiB of leaves from each source. No value is read, since a digest is enough.

Nodes that are written to differ for moments by the writes on their way between them; a difference that a second run
still shows is real.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import counted
from merklekv_tool.arguments import AsJsonLines, SourceName
from merklekv_tool.exit_codes import EXIT_PROBLEMS
from merklekv_tool.output import TIME_WIDTH, progress, say, say_json, say_result, text_of, time_text

if TYPE_CHECKING:
    from merklekv_tool.source.source import Pair, Source

EXAMPLES: Final = """
Examples:

    merklekv diff 127.0.0.1:7379 127.0.0.1:7380
    merklekv diff ./data ./backup --limit 20
    merklekv diff 127.0.0.1:7379 ./backup --json | jq -r 'select(.differs == "only_a").key'

A line is one key: which side has it, or has it newer, the version on each side, the key. Up to 10,000 are in the order
of their keys; more come as they are found. With --json each line is an object, and the last one, with the counts, is
the only one that has "equal".
"""
DIFFERENCES: Final = {
    "only_a": "only A",
    "only_b": "only B",
    "newer_a": "newer A",
    "newer_b": "newer B",
    "conflict": "conflict",
}
CELL: Final = TIME_WIDTH + len(" deleted")
KIND: Final = 8
SORTED_MAX: Final = 10_000


class Difference(NamedTuple):
    """A key on which two sources differ, with the head of its record in each."""

    kind: str  # of DIFFERENCES; conflict: one version with two contents
    key: bytes
    a: bytes | None
    b: bytes | None


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
    from merklekv_tool.source.open import open_source

    if Path(source_a).is_dir() and Path(source_b).is_dir() and Path(source_a).samefile(source_b):
        raise InvalidArgument(f"{source_b}: is the same directory as {source_a}")
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(open_source(name)) for name in (source_a, source_b))
        truncations = a.truncation(), b.truncation()
        for difference in in_order(differences(a, b)):
            if limit is None or counts.total() < limit:
                if not as_json and not counts:
                    say(f"A is {a.name}\nB is {b.name}\n\n{'':{KIND}}  {'A':{CELL}}  {'B':{CELL}}  key")
                _show(difference, as_json)
            counts[difference.kind] += 1
    _conclude(counts, *truncations, as_json)
    if counts or truncations[0] != truncations[1]:
        raise typer.Exit(EXIT_PROBLEMS)


def in_order(found: Iterator[Difference]) -> Iterator[Difference]:
    """Up to SORTED_MAX differences by key; more of them as they come, so that none has to wait for the last."""
    first = list(itertools.islice(found, SORTED_MAX + 1))
    if len(first) <= SORTED_MAX:
        first.sort(key=lambda one: one.key)
    yield from first
    yield from found


def differences(a: Source, b: Source) -> Iterator[Difference]:
    """Every difference, bucket by bucket."""
    from merklekv.engine.format import BUCKETS, LEAF_SIZE

    with progress("compare", prints=True) as update:
        leaves = b"".join(a.leaves()), b"".join(b.leaves())
        parts = (slice(at, at + LEAF_SIZE) for at in range(0, BUCKETS * LEAF_SIZE, LEAF_SIZE))
        buckets = [bucket for bucket, part in enumerate(parts) if leaves[0][part] != leaves[1][part]]
        for done, pairs in enumerate(zip(a.heads(buckets), b.heads(buckets), strict=True), 1):
            yield from compare(*pairs)
            update(done, len(buckets))


def compare(pairs_a: list[Pair], pairs_b: list[Pair]) -> Iterator[Difference]:
    """The differences between the (key, head) pairs of one bucket in two sources."""
    heads_a, heads_b = dict(pairs_a), dict(pairs_b)
    for key in sorted(heads_a.keys() | heads_b.keys()):
        a, b = heads_a.get(key), heads_b.get(key)
        if a != b:
            yield Difference(_kind(a, b), key, a, b)


def _kind(a: bytes | None, b: bytes | None) -> str:
    from merklekv.engine.record import version_of

    if b is None:
        return "only_a"
    if a is None:
        return "only_b"
    if version_of(a) == version_of(b):
        return "conflict"
    return "newer_a" if a > b else "newer_b"


def _show(difference: Difference, as_json: bool) -> None:
    from merklekv_tool.formats.jsonl import field

    kind, key, a, b = difference
    if as_json:
        say_json({"differs": kind, **field("key", key), "a": _fields(a), "b": _fields(b)})
    else:
        say(f"{DIFFERENCES[kind]:{KIND}}  {_cell(a):{CELL}}  {_cell(b):{CELL}}  {text_of(key)}")


def _fields(head: bytes | None) -> dict[str, object] | None:
    from merklekv.engine.record import is_tombstone, show_version

    return None if head is None else {"version": show_version(head), "deleted": is_tombstone(head)}


def _cell(head: bytes | None) -> str:
    """The time of the write, and whether it was a delete."""
    from merklekv.engine.record import is_tombstone, timestamp_of

    if head is None:
        return "-"
    return time_text(timestamp_of(head)) + (" deleted" if is_tombstone(head) else "")


def _conclude(counts: Counter[str], truncation_a: bytes, truncation_b: bytes, as_json: bool) -> None:
    from merklekv.engine.record import show_version

    alike = truncation_a == truncation_b
    by_kind = {kind: counts[kind] for kind in DIFFERENCES}
    total = counts.total()
    text = ""
    if not alike:
        a, b = show_version(truncation_a), show_version(truncation_b)
        text = f"the truncation versions differ: A was truncated at {a}, B at {b}\n"
    parts = ", ".join(f"{count} {DIFFERENCES[kind]}" for kind, count in by_kind.items() if count)
    text += f"{counted(total, 'key')} differ{'s' if total == 1 else ''}: {parts}" if total else "no key differs"
    say_result({"equal": alike and not total, **by_kind, "truncations_equal": alike}, text, as_json)
