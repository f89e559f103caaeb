"""`merklekv-tool diff`: the keys on which two sources, nodes or closed directories, differ.

Differences are printed as they are found, and never gathered. Nodes that are written to differ for moments by the
writes on their way between them; a difference that a second run still shows is real.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import counted
from merklekv_tool.arguments import AsJsonLines, SourceName
from merklekv_tool.exit_codes import EXIT_PROBLEMS
from merklekv_tool.output import say, say_json, say_result, text_of, time_text

if TYPE_CHECKING:
    from merklekv_tool.comparison import Difference

EXAMPLES: Final = """
Examples:

    merklekv-tool diff 127.0.0.1:7379 127.0.0.1:7380
    merklekv-tool diff ./data ./backup --limit 20
    merklekv-tool diff 127.0.0.1:7379 ./backup --json | jq -r 'select(.differs == "only_a").key'

A line is one key: which side has it, or has it newer, the version on each side, the key. With --json each line is an
object, and the last one, with the counts, is the only one that has "equal".
"""
DIFFERENCES: Final = {
    "only_a": "only A",
    "only_b": "only B",
    "newer_a": "newer A",
    "newer_b": "newer B",
    "conflict": "conflict",
}
CELL: Final = 34
KIND: Final = 8


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
    from merklekv_tool.comparison import differences
    from merklekv_tool.source.open import open_source

    if Path(source_a).is_dir() and Path(source_b).is_dir() and Path(source_a).samefile(source_b):
        raise InvalidArgument(f"{source_b}: is the same directory as {source_a}")
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(open_source(name)) for name in (source_a, source_b))
        truncations = a.truncation(), b.truncation()
        for difference in differences(a, b):
            if limit is None or counts.total() < limit:
                if not as_json and not counts:
                    say(f"A is {a.name}\nB is {b.name}\n\n{'':{KIND}}  {'A':{CELL}}  {'B':{CELL}}  key")
                _show(difference, as_json)
            counts[difference.kind] += 1
    _conclude(counts, *truncations, as_json)
    if counts or truncations[0] != truncations[1]:
        raise typer.Exit(EXIT_PROBLEMS)


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
