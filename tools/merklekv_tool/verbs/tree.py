"""`merklekv tree`: draws the Merkle tree of a source, or shows where the trees of two sources differ.

A cell stands for one of the 256 inner nodes, in rows of sixteen: the number of records below it, or of its leaves that
differ. Keys are spread by their hash, so a tree fills evenly; a write changes one leaf. An exchange between two nodes
looks at the leaves that differ here. `diff` names their keys.

A picture (PNG or SVG) shows the 65,536 leaves too, each inner node as a square of sixteen by sixteen.

Cost: 1.5 MiB from each source. A node may be written to meanwhile: then its leaves are from several moments, and writes
on their way between two nodes show as differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Annotated, Final

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import counted, printable
from merklekv_tool.arguments import DEFAULT_NODE, AsJson, SourceName
from merklekv_tool.exit_codes import EXIT_PROBLEMS
from merklekv_tool.files import STDIO, open_output, output_errors
from merklekv_tool.output import progress, say_json, say_styled

EXAMPLES: Final = """
Examples:

    merklekv tree ./data
    merklekv tree 127.0.0.1:7379 127.0.0.1:7380
    merklekv tree 127.0.0.1:7379 ./backup --output differences.svg
    merklekv tree 127.0.0.1:7379 --json | jq .fullest_leaf

Pictures need matplotlib: pip install matplotlib.
"""
ROW: Final = 16  # cells in a row
CELL: Final = 4  # characters of one
PICTURES: Final = (".png", ".svg")
COLD: Final = (24, 44, 94)
HOT: Final = (250, 200, 60)
DIFFERENT: Final = (200, 50, 40)

_LEAF: Final = Struct(">16sQ")

Colour = tuple[int, int, int] | None  # red, green, blue up to 255


@dataclass(frozen=True)
class Tree:
    """The leaves of a source, and its root."""

    name: str
    leaves: tuple[tuple[bytes, int], ...]  # of each: sum of digests, count of records
    root: bytes  # 32 bytes, zeros without records

    @property
    def records(self) -> int:
        return sum(self.counts)

    @property
    def counts(self) -> list[int]:
        """Records of each leaf."""
        return [count for _, count in self.leaves]


def _sums(leaves: Sequence[int]) -> list[int]:
    """Adds up the numbers of the leaves below each inner node."""
    from merklekv.engine.merkle import LEAVES_PER_INNER

    return [sum(leaves[at : at + LEAVES_PER_INNER]) for at in range(0, len(leaves), LEAVES_PER_INNER)]


def tree(
    source: SourceName = DEFAULT_NODE,
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="Another source, to see where they differ.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Draw a picture there, .png or .svg.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Draw the Merkle tree's fill, or where two sources differ; exit status 1 when they do."""
    if output and Path(output).suffix not in PICTURES:
        raise InvalidArgument(f"{output}: a picture's name ends in {' or '.join(PICTURES)}")
    trees = [_read(name) for name in (source, other) if name is not None]
    different: list[int] = []  # for each leaf 1 if it differs, else 0
    if other is not None:
        different = [int(mine != theirs) for mine, theirs in zip(*(one.leaves for one in trees), strict=True)]
    if output:
        _draw(trees, different, output)
    if as_json:
        say_json(_fields(trees, different))
    else:
        say_styled("\n".join(_lines(trees, different)))
    if len({one.root for one in trees}) > 1:
        raise typer.Exit(EXIT_PROBLEMS)


def _read(name: str) -> Tree:
    """The tree of a source, with its root computed from the leaves."""
    from merklekv.engine.merkle import EMPTY_ROOT
    from merklekv_tool.source.open import open_source

    with progress(f"read {name}"), open_source(name) as source:
        inner = source.leaves()
        truncation = source.truncation()
    leaves = tuple(leaf for packed in inner for leaf in _LEAF.iter_unpack(packed))
    root = sha256(b"".join(sha256(packed).digest() for packed in inner) + truncation).digest()
    return Tree(source.name, leaves, root if any(count for _, count in leaves) else EMPTY_ROOT)


def _differ_text(different: list[int]) -> str:
    leaves = sum(different)
    return f"{counted(leaves, 'leaf', 'leaves')} differ{'s' if leaves == 1 else ''}"


def _fields(trees: list[Tree], different: list[int]) -> dict[str, object]:
    fields = [
        {
            "source": one.name,
            "root": one.root.hex(),
            "records": one.records,
            "leaves": sum(map(bool, one.counts)),
            "fullest_leaf": max(one.counts),
            "inner": _sums(one.counts),
        }
        for one in trees
    ]
    if len(fields) == 1:
        return fields[0]
    return {
        "equal": trees[0].root == trees[1].root,
        "differing_leaves": sum(different),
        "differing": _sums(different),
        "a": fields[0],
        "b": fields[1],
    }


def _lines(trees: list[Tree], different: list[int]) -> list[str]:
    lines = []
    for one in trees:
        used = f"{sum(map(bool, one.counts)):,} of {len(one.counts):,} leaves"
        lines.append(f"{printable(one.name)}: {counted(one.records, 'record')} in {used}")
        lines.append(f"  at most {max(one.counts):,} in a leaf; root {one.root.hex()}")
    if len(trees) == 1:
        inner = _sums(trees[0].counts)
        least, most = min(inner), max(inner)
        return [*lines, "", *_grid(inner, lambda count: _shade(count, least, most), abbreviated)]
    inner = _sums(different)
    nodes = sum(count > 0 for count in inner)
    if not nodes:
        alike = trees[0].root == trees[1].root
        return [*lines, "the trees are equal" if alike else "the leaves are equal, the truncation versions differ"]
    lines.append(f"{_differ_text(different)}, below {nodes} of {len(inner)} inner nodes:")
    return [*lines, "", *_grid(inner, lambda count: DIFFERENT if count else None, lambda count: str(count or "."))]


def _shade(count: int, least: int, most: int) -> Colour:
    """A colour from cold to hot for a count from the least to the most."""
    share = (count - least) / (most - least) if most > least else 0.5
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(COLD, HOT, strict=True))
    return (red, green, blue) if count else None


def abbreviated(count: float) -> str:
    """A count in at most three characters: 999, 12k, .4M, 3M."""
    unit = ""
    for larger in "kMG":
        if count < (100 if unit else 1000):
            break
        count, unit = count / 1000, larger
    return f".{int(10 * count)}{unit}" if 0 < count < 1 else f"{int(count)}{unit}"


def _grid(counts: list[int], colour: Callable[[int], Colour], text: Callable[[int], str]) -> list[str]:
    """A cell for each inner node, coloured on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    with output_errors(STDIO), console.capture() as drawn:
        console.print("   " + "".join(f"{column:>{CELL}x}" for column in range(ROW)), style="dim")
        for first in range(0, len(counts), ROW):
            line = Text()
            line.append(f"{first:02x} ", "dim")
            for count in counts[first : first + ROW]:
                line.append(f"{text(count):>{CELL}}", _style(colour(count)))
            console.print(line)
    return drawn.get().splitlines()


def _style(colour: Colour) -> str:
    """A style of rich: a background, and a readable foreground."""
    if colour is None:
        return "dim"
    red, green, blue = colour
    dark = 0.3 * red + 0.6 * green + 0.1 * blue < 128
    return f"{'white' if dark else 'black'} on rgb({red},{green},{blue})"


def _draw(trees: list[Tree], different: list[int], output: str) -> None:
    """Draws a picture into a file. Raises InvalidArgument without matplotlib, FileError, DiskFull."""
    from merklekv_tool.formats.picture import DIFFERENT as MARKS
    from merklekv_tool.formats.picture import picture

    panels = [(f"{one.name}: {counted(one.records, 'record')}", one.counts, "records") for one in trees]
    if different:
        panels.append((_differ_text(different), different, MARKS))
    drawn = picture(panels, Path(output).suffix[1:])
    with open_output(output, opener=None) as file:
        file.write(drawn)
