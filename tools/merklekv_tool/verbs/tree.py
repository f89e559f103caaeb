"""`merklekv tree`: the way down the Merkle trees of two sources to the keys that differ, or the shape of one tree.

Two sources are compared as an exchange compares them, level by level, and only below what differs; see comparison.py.
The last line says what that took. A node may be written to meanwhile: writes on their way show as differences.

Of one source all leaves are read, 1.5 MiB. A hash spreads the keys, so which leaf has how many says little. How full
leaves are says what an exchange compares for each leaf that differs.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Final

import typer

from merklekv.output import counted, printable
from merklekv_tool.arguments import DEFAULT_NODE, AsJson, SourceName
from merklekv_tool.comparison import DIFFERENCES, HEADING, Descent, Difference, counts_text, descended
from merklekv_tool.exit_codes import EXIT_PROBLEMS
from merklekv_tool.files import STDIO, output_errors
from merklekv_tool.output import progress, say_json, say_styled

EXAMPLES: Final = """
Examples:

    merklekv tree 127.0.0.1:7379 127.0.0.1:7380
    merklekv tree 127.0.0.1:7379 ./backup --limit 100
    merklekv tree ./data
    merklekv tree 127.0.0.1:7379 ./backup --json | jq .compared

Of two sources it shows which inner nodes differ, which leaves below these, and which keys in these, as `diff` does.
In the map a character is one of the 256 inner nodes: a dot if it is equal, else how many of its leaves differ, + for
more than 9.
"""
SHOWN: Final = 8  # keys, unless told otherwise: with all above it fits a screen
NAMED: Final = 12  # inner nodes or leaves in a line
MAP_ROW: Final = 64  # inner nodes in a row of the map
BARS: Final = 10  # of the histogram
BAR: Final = 40  # characters of the longest
SHORT: Final = 16  # hex digits of a root that two others stand beside

Found = list[tuple[int, Difference]]  # keys that differ, with their buckets
Line = list[tuple[str, str]]  # pieces of text, and how a terminal shows each


def tree(
    source: SourceName = DEFAULT_NODE,
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="Another source, to see where they differ.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, metavar="N", help="Show so many keys at most; all are counted.")
    ] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show where the Merkle trees of two sources differ, exit status 1 when they do; or the shape of one."""
    if other is None:
        _shape(source, as_json)
        return
    found: Found = []
    counts: Counter[str] = Counter()
    with progress("compare") as update, descended(source, other) as descent:
        records = descent.a.count(), descent.b.count()
        for bucket, difference in descent.differences():
            if len(found) < limit:
                found.append((bucket, difference))
            counts[difference.kind] += 1
            update(descent.buckets_compared, len(descent.buckets))
    if as_json:
        say_json(_descent_fields(descent, records, found, counts))
    else:
        _say(_descent_lines(descent, records, found, counts))
    if not descent.equal:
        raise typer.Exit(EXIT_PROBLEMS)


# -- two sources -------------------------------------------------------------------------------------------------------


def _descent_fields(
    descent: Descent, records: tuple[int, int], found: Found, counts: Counter[str]
) -> dict[str, object]:
    sides = zip("ab", (descent.a, descent.b), descent.roots, records, strict=True)
    return {
        "equal": descent.equal,
        "truncations_equal": descent.truncations_equal,
        **{side: {"source": one.name, "root": root.hex(), "records": count} for side, one, root, count in sides},
        "inner": descent.inner,
        "leaves": descent.buckets,
        "keys": [{"leaf": bucket, **difference.fields()} for bucket, difference in found],
        "differing_keys": {kind: counts[kind] for kind in DIFFERENCES},
        "compared": {
            "roots": 1,
            "inner": descent.inner_compared,
            "leaves": descent.leaves_compared,
            "keys": descent.keys_compared,
        },
    }


def _descent_lines(descent: Descent, records: tuple[int, int], found: Found, counts: Counter[str]) -> list[Line]:
    from merklekv.engine.format import BUCKETS

    if descent.equal:
        return [[(f"equal: root {descent.roots[0].hex()}, {counted(records[0], 'record')}", "green")]]
    sides = zip("AB", (descent.a, descent.b), descent.roots, records, strict=True)
    lines: list[Line] = [
        [(f"{side} is {printable(one.name)}: root {root.hex()[:SHORT]}, {counted(count, 'record')}", "")]
        for side, one, root, count in sides
    ]
    lines += [[(line, "yellow")] for line in descent.truncation_text().splitlines()]
    if descent.inner:
        lines += [[], _level(f"of {descent.inner_compared} inner nodes", [f"{node:02x}" for node in descent.inner])]
        lines += _map(descent)
    if descent.buckets:
        leaves = f"of {descent.leaves_compared:,} leaves below"
        lines += [_level(leaves, [f"{bucket:04x}" for bucket in descent.buckets])]
    if counts:
        lines += [[], [(f"leaf  {HEADING}", "dim")]]
        lines += [[(f"{bucket:04x}  ", "dim"), (difference.row(), "")] for bucket, difference in found]
        if len(found) < counts.total():
            lines += [[(f"and {counts.total() - len(found):,} more", "")]]
    lines += [[], [(counts_text(counts), "")]]
    compared = {"1 root": 1, f"{descent.inner_compared} inner digests": descent.inner_compared}
    compared |= {f"{descent.leaves_compared:,} of {BUCKETS:,} leaves": descent.leaves_compared}
    compared |= {f"{counted(descent.keys_compared, 'key')} in {len(descent.buckets):,} of them": descent.keys_compared}
    return [*lines, [("compared: " + ", ".join(text for text, number in compared.items() if number), "dim")]]


def _level(which: str, names: list[str]) -> Line:
    """How many differ on a level, and which."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    verb = "differs" if len(names) == 1 else "differ"
    return [(f"{len(names):,} {which} {verb}: ", ""), (" ".join(names[:NAMED]), "red"), (more, "")]


def _map(descent: Descent) -> list[Line]:
    """A character for each inner node, how many of its leaves differ."""
    from merklekv.engine.format import INNER_NODES
    from merklekv.engine.merkle import LEAVES_PER_INNER

    below = Counter(bucket // LEAVES_PER_INNER for bucket in descent.buckets)
    marks = ["." if not below[node] else str(below[node]) if below[node] < 10 else "+" for node in range(INNER_NODES)]
    return [
        [(f"  {first:02x}  ", "dim"), *((mark, "dim" if mark == "." else "bold white on red") for mark in row)]
        for first in range(0, INNER_NODES, MAP_ROW)
        for row in [marks[first : first + MAP_ROW]]
    ]


# -- one source --------------------------------------------------------------------------------------------------------


def _shape(name: str, as_json: bool) -> None:
    """Shows how full the leaves of a source are."""
    from merklekv.engine.format import BUCKETS, INNER_NODES
    from merklekv.engine.merkle import COUNT_MASK, unpack_leaves
    from merklekv_tool.source.open import open_source

    with progress(f"read {name}"), open_source(name) as source:
        root, shown = source.root(), source.name
        packed = source.leaves(range(INNER_NODES))
    sizes = [leaf & COUNT_MASK for leaves in packed for leaf in unpack_leaves(leaves)]
    least, most = min(sizes), max(sizes)
    leaves_of = dict(sorted(Counter(sizes).items()))  # how many leaves, by how many records each has
    used = len(sizes) - leaves_of.get(0, 0)
    if as_json:
        say_json(
            {
                "source": shown,
                "root": root.hex(),
                "records": sum(sizes),
                "leaves": used,
                "fullest": {"leaf": sizes.index(most), "records": most},
                "emptiest": {"leaf": sizes.index(least), "records": least},
                "leaves_by_records": leaves_of,
            }
        )
        return
    lines = [
        f"{printable(shown)}: root {root.hex()}",
        f"{counted(sum(sizes), 'record')} in {used:,} of {BUCKETS:,} leaves, below {INNER_NODES} inner nodes",
        f"a leaf has {sum(sizes) / BUCKETS:,.1f} on average, "
        f"{least:,} at least ({sizes.index(least):04x}), {most:,} at most ({sizes.index(most):04x})",
    ]
    _say([*([(line, "")] for line in lines), [], *_histogram(leaves_of)])


def _histogram(leaves_of: dict[int, int]) -> list[Line]:
    """Bars: how many leaves have so many records."""
    least, most = min(leaves_of), max(leaves_of)
    width = (most - least) // BARS + 1
    bars: Counter[int] = Counter()
    for records, leaves in leaves_of.items():
        bars[least + (records - least) // width * width] += leaves
    names = {at: f"{at:,}" if width == 1 else f"{at:,}-{at + width - 1:,}" for at in range(least, most + 1, width)}
    left = max(len("records"), *map(len, names.values()))
    longest = max(bars.values())
    return [
        [(f"{'records':>{left}}  {'leaves':>6}", "dim")],
        *(
            [(f"{name:>{left}}  {bars[at]:>6,}  ", ""), ("#" * -(-BAR * bars[at] // longest), "green")]
            for at, name in names.items()
        ),
    ]


def _say(lines: list[Line]) -> None:
    """Prints lines, coloured on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    with output_errors(STDIO), console.capture() as drawn:
        for line in lines:
            console.print(Text.assemble(*line))
    say_styled(drawn.get().removesuffix("\n"))
