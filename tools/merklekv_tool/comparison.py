"""What two sources hold differently, found as an exchange finds it: from the root down to the keys.

Equal roots are compared and nothing else. Else the 256 inner digests of both are, then the leaves below those that
differ, then the heads of the records in the leaves that differ. What is equal is not read: the cost follows the
difference. No value is read, since a digest is enough.

Nodes that are written to differ for moments by the writes on their way between them; a difference that a second run
still shows is real.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from merklekv.errors import InvalidArgument
from merklekv.output import counted
from merklekv_tool.output import TIME_WIDTH, text_of, time_text

if TYPE_CHECKING:
    from merklekv_tool.source.source import Pair, Source

DIFFERENCES: Final = {
    "only_a": "only A",
    "only_b": "only B",
    "newer_a": "newer A",
    "newer_b": "newer B",
    "conflict": "conflict",
}
CELL: Final = TIME_WIDTH + len(" deleted")
KIND: Final = 8
HEADING: Final = f"{'':{KIND}}  {'A':{CELL}}  {'B':{CELL}}  key"


class Difference(NamedTuple):
    """A key on which two sources differ, with the head of its record in each."""

    kind: str  # of DIFFERENCES; conflict: one version with two contents
    key: bytes
    a: bytes | None
    b: bytes | None

    def row(self) -> str:
        """A row below HEADING."""
        return f"{DIFFERENCES[self.kind]:{KIND}}  {_cell(self.a):{CELL}}  {_cell(self.b):{CELL}}  {text_of(self.key)}"

    def fields(self) -> dict[str, object]:
        """For JSON."""
        from merklekv_tool.formats.jsonl import field

        return {"differs": self.kind, **field("key", self.key), "a": _fields(self.a), "b": _fields(self.b)}


class Descent:
    """The comparison of two sources. Reads what differs of their Merkle trees at once, and the records on demand."""

    def __init__(self, a: Source, b: Source) -> None:
        from merklekv.engine.merkle import LEAVES_PER_INNER, unpack_leaves

        self.a, self.b = a, b
        self.roots, self.truncations = (a.root(), b.root()), (a.truncation(), b.truncation())
        self.inner_compared = self.buckets_compared = self.keys_compared = 0
        self.inner: list[int] = []  # the inner nodes that differ
        self.buckets: list[int] = []  # whose leaves differ
        if self.roots[0] != self.roots[1]:
            digests = list(zip(a.inner_digests(), b.inner_digests(), strict=True))
            self.inner_compared = len(digests)
            self.inner = [node for node, (mine, theirs) in enumerate(digests) if mine != theirs]
        for node, *packed in zip(self.inner, a.leaves(self.inner), b.leaves(self.inner), strict=True):
            leaves = zip(*map(unpack_leaves, packed), strict=True)
            first = node * LEAVES_PER_INNER
            self.buckets += [first + at for at, (mine, theirs) in enumerate(leaves) if mine != theirs]
        self.leaves_compared = len(self.inner) * LEAVES_PER_INNER

    @property
    def equal(self) -> bool:
        """Whether both hold the same records, and would take the same ones from others."""
        return self.roots[0] == self.roots[1] and self.truncations_equal

    @property
    def truncations_equal(self) -> bool:
        """Whether both truncation versions are the same; they are part of the roots, but for empty sources."""
        return self.truncations[0] == self.truncations[1]

    def differences(self) -> Iterator[tuple[int, Difference]]:
        """Every key that differs, with its bucket, in the order of the buckets."""
        for bucket, *pairs in zip(self.buckets, self.a.heads(self.buckets), self.b.heads(self.buckets), strict=True):
            self.keys_compared += len({key for side in pairs for key, _ in side})
            self.buckets_compared += 1
            for difference in compare(*pairs):
                yield bucket, difference

    def truncation_text(self) -> str:
        """A line about truncation versions that differ, else nothing."""
        from merklekv.engine.record import show_version

        if self.truncations_equal:
            return ""
        a, b = map(show_version, self.truncations)
        return f"the truncation versions differ: A was truncated at {a}, B at {b}\n"


@contextlib.contextmanager
def descended(name_a: str, name_b: str) -> Iterator[Descent]:
    """The comparison of two sources, which stay open for it. Raises InvalidArgument for one directory twice."""
    from merklekv_tool.source.open import open_source

    if Path(name_a).is_dir() and Path(name_b).is_dir() and Path(name_a).samefile(name_b):
        raise InvalidArgument(f"{name_b}: is the same directory as {name_a}")
    with open_source(name_a) as a, open_source(name_b) as b:
        yield Descent(a, b)


def compare(pairs_a: list[Pair], pairs_b: list[Pair]) -> Iterator[Difference]:
    """The differences between the (key, head) pairs of one bucket in two sources."""
    heads_a, heads_b = dict(pairs_a), dict(pairs_b)
    for key in sorted(heads_a.keys() | heads_b.keys()):
        a, b = heads_a.get(key), heads_b.get(key)
        if a != b:
            yield Difference(_kind(a, b), key, a, b)


def counts_text(counts: Counter[str]) -> str:
    """How many keys differ, in all and by kind."""
    total = counts.total()
    parts = ", ".join(f"{counts[kind]:,} {text}" for kind, text in DIFFERENCES.items() if counts[kind])
    return f"{counted(total, 'key')} differ{'s' if total == 1 else ''}: {parts}" if total else "no key differs"


def _kind(a: bytes | None, b: bytes | None) -> str:
    from merklekv.engine.record import version_of

    if b is None:
        return "only_a"
    if a is None:
        return "only_b"
    if version_of(a) == version_of(b):
        return "conflict"
    return "newer_a" if a > b else "newer_b"


def _fields(head: bytes | None) -> dict[str, object] | None:
    from merklekv.engine.record import is_tombstone, show_version

    return None if head is None else {"version": show_version(head), "deleted": is_tombstone(head)}


def _cell(head: bytes | None) -> str:
    """The time of the write, and whether it was a delete."""
    from merklekv.engine.record import is_tombstone, timestamp_of

    if head is None:
        return "-"
    return time_text(timestamp_of(head)) + (" deleted" if is_tombstone(head) else "")
