"""A source of records: what a verb needs of a data directory or of a running node.

Records are read in pages of at most PAGE_RECORDS or about PAGE_BYTES, and merged in batches of the same size.

A directory is a snapshot. A node that is written to meanwhile is not: each record is the newest one at the moment when
its page was read, and every record that exists all the time is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from merklekv.replication.cluster.display import DisplayRow

PAGE_RECORDS: Final = 1000
PAGE_BYTES: Final = 1 << 20
ORIGIN: Final = b"merklekv-tool"  # of merged records, in the log

TOO_LARGE: Final = "value size"  # the reason, as the engine gives it

Pair = tuple[bytes, bytes]
Content = tuple[bytes, bytes, int | None]  # key, value, expiry in milliseconds since the epoch


class Merged(NamedTuple):
    """The result of a batch: counts, and (key, reason) of each refused record."""

    applied: int
    superseded: int
    refused: list[tuple[bytes, str]]


class Source(Protocol):
    """A data directory or a running node."""

    name: str

    def count(self) -> int:
        """Records, tombstones included; approximate while a node is written to."""

    def truncation(self) -> bytes:
        """The truncation version, 24 bytes."""

    def pages(self, prefix: bytes = b"") -> Iterator[list[Pair]]:
        """All (key, record) with a prefix, in key order, tombstones included."""

    def root(self) -> bytes:
        """The root of the Merkle tree, 32 bytes; zeros without records."""

    def inner_digests(self) -> list[bytes]:
        """The digests of its 256 inner nodes, 32 bytes each."""

    def leaves(self, inner: Sequence[int]) -> list[bytes]:
        """The 256 leaves below each of these inner nodes: sum (16 bytes) and count (8) of each."""

    def heads(self, buckets: Sequence[int]) -> Iterator[list[Pair]]:
        """(key, head) of each record, 41 bytes a head, one list for each bucket, tombstones included."""

    def members(self) -> list[DisplayRow]:
        """The rows of the member table, see replication/cluster/display.py; empty if this never was a node."""

    def merge(self, pairs: list[Pair]) -> Merged:
        """Merges (key, record) pairs; returns when they are as durable as the source makes them."""

    def write(self, contents: list[Content]) -> Merged:
        """Writes values as clients do; returns as `merge` does."""

    def merge_truncation(self, truncation: bytes) -> None:
        """Merges a truncation version."""

    def close(self) -> None:
        """Closes the source, with everything durable."""


Sized = TypeVar("Sized", Pair, Content)


def split_by_size(items: list[Sized], size_max: int) -> tuple[list[Sized], list[tuple[bytes, str]]]:
    """The items that fit, and the others as refused: a node would close the connection on too large an argument."""
    fit = [item for item in items if len(item[1]) <= size_max]
    return fit, [(item[0], TOO_LARGE) for item in items if len(item[1]) > size_max]
