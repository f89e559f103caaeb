"""`merklekv-tool diff`: what two places, nodes or closed directories, do not both hold.

Both Merkle trees are compared, and then only the keys of the buckets that differ, with their versions: the cost follows
the difference, beside 1.5 MiB of leaves from each place.  No value is read, since a digest tells as much.  Differences
are shown as they are found, bucket by bucket, and never gathered.

Nodes that are written to differ for moments by what is on its way between them; what stays in a second run is real.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import counted
from merklekv_tool.output import PlaceName, progress, say, say_json, text_of
from merklekv_tool.statuses import EXIT_PROBLEMS

if TYPE_CHECKING:
    from merklekv_tool.places import LogPosition, Pair

EXAMPLES: Final = """
Examples:

    merklekv-tool diff 127.0.0.1:7379 127.0.0.1:7380
    merklekv-tool diff ./data ./backup --limit 20
    merklekv-tool diff 127.0.0.1:7379 ./backup --json | jq -r 'select(.differs == "only_a").key'

A line is one key: which place has it, or has it newer, the version there and here, the key. With --json each line is an
object, and the last one, with the counts, is the only one that has "equal".
"""
DIFFERENCES: Final = {
    "only_a": "only A",
    "only_b": "only B",
    "newer_a": "newer A",
    "newer_b": "newer B",
    "conflict": "conflict",  # one version with two contents
}
CELL: Final = 34
KIND: Final = 8


class Difference(NamedTuple):
    """A key that two places do not hold alike, with the head of its record in each."""

    kind: str  # a name of DIFFERENCES
    key: bytes
    a: bytes | None
    b: bytes | None


def diff(
    place_a: PlaceName,
    place_b: PlaceName,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=0, metavar="N", help="Show so many keys at most; all are counted.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line instead of a table.")] = False,
) -> None:
    """Show the keys that two places do not hold alike; exit status 1 when there are any."""
    from merklekv_tool import places

    if Path(place_a).is_dir() and Path(place_b).is_dir() and Path(place_a).samefile(place_b):
        raise InvalidArgument(f"{place_b}: is the same directory as {place_a}")
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(places.opened(place)) for place in (place_a, place_b))
        truncations = a.truncation(), b.truncation()
        for difference in differences(a, b):
            if limit is None or counts.total() < limit:
                if not as_json and not counts:
                    say(f"A is {a.name}\nB is {b.name}\n\n{'':{KIND}}  {'A':{CELL}}  {'B':{CELL}}  key")
                show(difference, as_json)
            counts[difference.kind] += 1
    equal = not counts and truncations[0] == truncations[1]
    conclude(counts, truncations, equal, as_json)
    if not equal:
        raise typer.Exit(EXIT_PROBLEMS)


def differences(a: LogPosition, b: LogPosition) -> Iterator[Difference]:
    """Every key that differs, bucket by bucket."""
    from merklekv.engine.format import BUCKETS, LEAF_SIZE

    with progress("compare", prints=True) as update:
        leaves = b"".join(a.leaves()), b"".join(b.leaves())
        buckets = [
            bucket
            for bucket in range(BUCKETS)
            if len({one[bucket * LEAF_SIZE : (bucket + 1) * LEAF_SIZE] for one in leaves}) > 1
        ]
        for done, pairs in enumerate(zip(a.heads(buckets), b.heads(buckets), strict=True), 1):
            yield from compare(*pairs)
            update(done, len(buckets))


def compare(pairs_a: list[Pair], pairs_b: list[Pair]) -> Iterator[Difference]:
    """What differs between the (key, head) of a bucket in one place and in the other."""
    heads_a, heads_b = dict(pairs_a), dict(pairs_b)
    for key in sorted(heads_a.keys() | heads_b.keys()):
        a, b = heads_a.get(key), heads_b.get(key)
        if a != b:
            yield Difference(kind_of(a, b), key, a, b)


def kind_of(a: bytes | None, b: bytes | None) -> str:
    """Which of DIFFERENCES two heads make."""
    from merklekv.engine.record import version_of

    if b is None:
        return "only_a"
    if a is None:
        return "only_b"
    if version_of(a) == version_of(b):
        return "conflict"
    return "newer_a" if a > b else "newer_b"


def show(difference: Difference, as_json: bool) -> None:
    """One difference, on a line."""
    if as_json:
        from merklekv_tool.jsonl import field

        say_json(
            {"differs": difference.kind, **field("key", difference.key)}
            | {"a": described(difference.a), "b": described(difference.b)}
        )
    else:
        cells = f"{cell(difference.a):{CELL}}  {cell(difference.b):{CELL}}"
        say(f"{DIFFERENCES[difference.kind]:{KIND}}  {cells}  {text_of(difference.key)}")


def described(head: bytes | None) -> dict[str, object] | None:
    """A head for programs."""
    from merklekv.engine.record import is_tombstone, show_version

    return None if head is None else {"version": show_version(head), "deleted": is_tombstone(head)}


def cell(head: bytes | None) -> str:
    """A head for people: when it was written, and whether that was a delete."""
    from merklekv.engine.record import is_tombstone, timestamp_of
    from merklekv_tool.output import moment

    if head is None:
        return "-"
    return moment(timestamp_of(head)) + (" deleted" if is_tombstone(head) else "")


def conclude(counts: Counter[str], truncations: tuple[bytes, bytes], equal: bool, as_json: bool) -> None:
    """The counts."""
    from merklekv.engine.record import show_version

    if as_json:
        say_json(
            {
                "equal": equal,
                **{kind: counts[kind] for kind in DIFFERENCES},
                "truncations_equal": truncations[0] == truncations[1],
            }
        )
        return
    if truncations[0] != truncations[1]:
        say(
            f"the floors differ: A was truncated at {show_version(truncations[0])}, B at {show_version(truncations[1])}"
        )
    total = counts.total()
    parts = ", ".join(f"{counts[kind]} {name}" for kind, name in DIFFERENCES.items() if counts[kind])
    differ = f"{counted(total, 'key')} differ{'s' if total == 1 else ''}"
    say(f"{differ}: {parts}" if total else "no key differs")
