"""Where data is: a closed directory, or a running node behind its port. The verbs work on either alike.

A directory that some process holds is refused, with that process's number: reading it safely goes through the node's
port. Both are read in pages of at most PAGE_RECORDS records or about PAGE_BYTES, and take records in through the
engine's merge, in batches of the same size.

A directory is a snapshot. A node that is written to meanwhile is not: each record is the newest of the moment in which
its page was read, and whatever is there throughout is read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

from merklekv.address import has_address_form, parse_address
from merklekv.engine.clock import show_time
from merklekv.engine.directory import require_format
from merklekv.engine.engine import Engine
from merklekv.engine.format import INNER_NODES, LEAF_SIZE, MAX_VALUE_SIZE_LIMIT, OP_DEL, OP_SET
from merklekv.engine.merkle import LEAVES_PER_INNER
from merklekv.engine.record import (
    HEAD_SIZE,
    RECORD_OVERHEAD,
    VERSION_SIZE,
    body_of,
    head_of,
    is_tombstone,
    timestamp_of,
)
from merklekv.errors import InvalidArgument, MerkleKVError, NotADataDirectory, Stalled
from merklekv.metrics import parse
from merklekv.net.client import REPLY_ROOM_BYTES, Client, Reply, Unreachable
from merklekv.replication.cluster.member_rows import Row, rows, stored_members
from merklekv.replication.sync.local_endpoint import METADATA_MEMBERS
from merklekv_tool.statuses import FileError

PAGE_RECORDS: Final = 1000
PAGE_BYTES: Final = 1 << 20
ORIGIN: Final = b"merklekv-tool"  # where merged records are said to come from, in the log
BUCKETS_ASKED: Final = 100  # at once
WAIT_S: Final = 1.0

Pair = tuple[bytes, bytes]
T = TypeVar("T")


class Merged(NamedTuple):
    """What became of a batch: counts, and (key, reason) of what was refused."""

    applied: int
    superseded: int
    refused: list[tuple[bytes, str]]


class LogPosition(Protocol):
    """What a verb needs of a directory or a node."""

    name: str

    def count(self) -> int:
        """Records, dead ones too; approximate while a node is written to."""

    def truncation(self) -> bytes:
        """The version (24 bytes) below which every record is dead."""

    def pages(self, prefix: bytes = b"") -> Iterator[list[Pair]]:
        """All (key, record) with a prefix, in key order, tombstones too."""

    def leaves(self) -> list[bytes]:
        """The leaves below each of the 256 inner nodes of the Merkle tree: sum (16 bytes) and count (8) of each."""

    def heads(self, buckets: Sequence[int]) -> Iterator[list[Pair]]:
        """(key, head of 41 bytes) of each record of the buckets, one bucket after the other, tombstones too."""

    def members(self) -> list[Row]:
        """The members that it knows, see replication/member_rows.py; empty when it never was a node."""

    def merge(self, pairs: list[Pair]) -> Merged:
        """Takes records in; returns when they are as durable as the place makes them."""

    def write(self, pairs: list[Pair]) -> Merged:
        """Writes (key, value) as clients do; returns as `merge` does."""

    def merge_truncation(self, truncation: bytes) -> None:
        """Takes a floor in."""

    def close(self) -> None:
        """Lets the place go, with everything durable."""


def address_of(place: str) -> tuple[str, int] | None:
    """Host and port, or None when `place` means a directory. Raises InvalidArgument for an address that cannot be."""
    if not has_address_form(place) or os.path.exists(place):
        return None
    return parse_address(place)


@contextlib.contextmanager
def opened(place: str, to_load: bool = False) -> Iterator[LogPosition]:
    """The place that a person named as DIR or HOST:PORT. `to_load`: a directory is made when it is missing."""
    address = address_of(place)
    there: LogPosition = Node(*address) if address else Directory(require_directory(place, to_load), to_load)
    try:
        yield there
    finally:
        there.close()


@contextlib.contextmanager
def node_at(place: str) -> Iterator[Node]:
    """The running node of that name, HOST:PORT. Raises InvalidArgument for anything else."""
    address = address_of(place)
    if address is None:
        raise InvalidArgument(f"{place}: not a running node: give HOST:PORT")
    node = Node(*address)
    try:
        yield node
    finally:
        node.close()


def require_directory(place: str, may_be_new: bool = False) -> Path:
    """The data directory of that name. Raises NotADataDirectory, FormatTooNew, FileError, and never makes one."""
    path = Path(place)
    if may_be_new and ":" in place and os.sep not in place and not os.path.exists(place):
        raise InvalidArgument(f"{place}: not HOST:PORT; a new directory that is called so is ./{place}")
    if os.path.isdir(path):  # which does not complain of a name that is too long
        try:
            require_format(path, may_be_new)
        except NotADataDirectory as error:
            raise error if may_be_new else NotADataDirectory(str(error).partition("; ")[0]) from error
        except OSError as error:
            raise FileError(f"{place}: cannot be read: {error.strerror}") from error
    elif not may_be_new or os.path.exists(path):
        from merklekv_tool.backups import is_archive

        hint = "; a backup in one file has to be restored first" if is_archive(place) and os.path.exists(path) else ""
        raise NotADataDirectory(f"{place}: neither a data directory nor HOST:PORT{hint}")
    return path


class Directory:
    """A data directory that no process has open. Opening it repairs what a start of the node would repair."""

    def __init__(self, path: Path, to_load: bool) -> None:
        self.name = str(path)
        # What is loaded is made durable once, by `close`.
        self._engine = Engine(path, durability="never", checkpoint="process" if to_load else "manual")

    def count(self) -> int:
        return self._engine.live_count + self._engine.tombstone_count

    def truncation(self) -> bytes:
        return self._engine.truncation

    def pages(self, prefix: bytes = b"") -> Iterator[list[Pair]]:
        after: bytes | None = b""
        while after is not None:
            pairs, after = self._engine.records_page(prefix, after, PAGE_RECORDS, PAGE_BYTES)
            yield pairs

    def leaves(self) -> list[bytes]:
        while not self._engine.root_ready:
            self._engine.checkpoint_now()
        return [self._engine.inner_leaves(inner) for inner in range(INNER_NODES)]

    def heads(self, buckets: Sequence[int]) -> Iterator[list[Pair]]:
        while not self._engine.prepare_buckets():
            pass
        return map(self._engine.bucket, buckets)

    def members(self) -> list[Row]:
        note = self._engine.metadata.get(METADATA_MEMBERS)
        return rows(stored_members(note), self._engine.gc_horizon, time.time()) if note else []

    def merge(self, pairs: list[Pair]) -> Merged:
        items = [(OP_DEL if is_tombstone(record) else OP_SET, key, record) for key, record in pairs]
        return Merged(*self._when_there_is_room(lambda: self._engine.merge(items, ORIGIN)))

    def write(self, pairs: list[Pair]) -> Merged:
        fit, refused = _sort_out(pairs, self._engine.max_value_size)
        self._when_there_is_room(lambda: self._engine.mset(fit))
        return Merged(len(fit), 0, refused)

    def _when_there_is_room(self, call: Callable[[], T]) -> T:
        while True:
            try:
                result = call()
            except Stalled:
                self._engine.wait_for_room(WAIT_S)
            else:
                self._engine.commit()
                return result

    def merge_truncation(self, truncation: bytes) -> None:
        if self._engine.clock.truncates_too_far_ahead(truncation):
            raise InvalidArgument(
                f"a floor of {show_time(timestamp_of(truncation))} is too far ahead of the wall clock"
            )
        self._engine.merge_truncation(truncation, ORIGIN)
        self._engine.commit()

    def close(self) -> None:
        self._engine.close()


class Node:
    """A running node. Whatever else listens there: an answer that no node gives raises Unreachable."""

    def __init__(self, host: str, port: int) -> None:
        # A dump has to take the largest value that any node may be set to have.
        self._client = Client(host, port, reply_bytes=MAX_VALUE_SIZE_LIMIT + REPLY_ROOM_BYTES)
        self.name = self._client.name

    def statistics(self) -> dict[str, str]:
        """All of STATS."""
        figures = parse(self._bytes(b"STATS").decode(errors="replace"))
        if not figures:
            raise self._strange(b"STATS")
        return figures

    def count(self) -> int:
        figures = self.statistics()
        with self._understood(b"STATS"):
            return int(figures["db_keys"]) + int(figures["db_tombstones"])

    def truncation(self) -> bytes:
        truncation = self._bytes(b"TRUNCATION")
        if len(truncation) != VERSION_SIZE:
            raise self._strange(b"TRUNCATION")
        return truncation

    def root(self) -> bytes:
        """The Merkle root, 32 bytes."""
        answer = self._bytes(b"HASH")
        with self._understood(b"HASH"):
            return bytes.fromhex(answer.decode())

    def pages(self, prefix: bytes = b"") -> Iterator[list[Pair]]:
        after: Reply = b""
        while isinstance(after, bytes):
            before = after
            answer = self._list(b"RECORDS", after, b"%d" % PAGE_RECORDS, b"PREFIX", prefix)
            with self._understood(b"RECORDS"):
                after, parts = answer
                whole = zip(*(_all_bytes(parts)[at::3] for at in range(3)), strict=True)
                page = [(key, head + value) for key, head, value in whole]
            if isinstance(after, bytes) and after <= before:
                raise self._strange(b"RECORDS")  # it would never end
            yield page

    def leaves(self) -> list[bytes]:
        self._client.send([(b"TREE", b"%d" % inner) for inner in range(INNER_NODES)])
        replies = [self._client.receive() for _ in range(INNER_NODES)]
        if not all(isinstance(reply, bytes) and len(reply) == LEAVES_PER_INNER * LEAF_SIZE for reply in replies):
            raise self._strange(b"TREE")
        return replies  # type: ignore[return-value]

    def heads(self, buckets: Sequence[int]) -> Iterator[list[Pair]]:
        for start in range(0, len(buckets), BUCKETS_ASKED):
            asked = buckets[start : start + BUCKETS_ASKED]
            self._client.send([(b"BUCKET", b"%d" % bucket) for bucket in asked])
            for _ in asked:
                with self._understood(b"BUCKET"):
                    parts = _all_bytes(self._client.receive())
                    pairs = list(zip(parts[::2], parts[1::2], strict=True))
                if any(len(head) != HEAD_SIZE for _, head in pairs):
                    raise self._strange(b"BUCKET")
                yield pairs

    def members(self) -> list[Row]:
        lines = self._bytes(b"MEMBERS").split(b"\n")
        with self._understood(b"MEMBERS"):
            return [_checked_row(json.loads(line)) for line in lines if line.strip()]

    def forget(self, node: str, store_id: str) -> None:
        """Lets the node take another one out of the members, for good."""
        self._done(b"FORGET", node.encode(), *([store_id.encode()] if store_id else []))

    def log_list(self) -> tuple[int, int, list[int]]:
        """LSNs: up to where the log is committed, up to where it is absorbed, and where its segments begin."""
        answer = self._list(b"LOG", b"LIST")
        with self._understood(b"LOG"):
            end, checkpoint_lsn, segments = answer
            if not isinstance(segments, list) or not all(
                isinstance(one, int) for one in (end, checkpoint_lsn, *segments)
            ):
                raise self._strange(b"LOG")
        return end, checkpoint_lsn, segments  # type: ignore[return-value]

    def log_read(self, segment: int, position: int, size: int) -> bytes | None:
        """Committed bytes of a segment, fewer than asked for at its end; None when it is gone."""
        reply = self._client.call(b"LOG", b"READ", b"%d" % segment, b"%d" % position, b"%d" % size)
        if reply is not None and not isinstance(reply, bytes):
            raise self._strange(b"LOG")
        return reply

    def metadata(self) -> dict[bytes, bytes]:
        """What the node keeps with its data."""
        answer = self._list(b"METADATA")
        with self._understood(b"METADATA"):
            parts = _all_bytes(answer)
            return dict(zip(parts[::2], parts[1::2], strict=True))

    def merge(self, pairs: list[Pair]) -> Merged:
        fit, refused = _sort_out(pairs, RECORD_OVERHEAD + self._largest_value)
        if not fit:
            return Merged(0, 0, refused)
        parts = [part for key, record in fit for part in (key, *_split(record))]
        answer = self._list(b"MERGE", ORIGIN, *parts)
        with self._understood(b"MERGE"):
            applied, superseded, named = answer
            if not isinstance(applied, int) or not isinstance(superseded, int):
                raise self._strange(b"MERGE")
            names = _all_bytes(named)
            reasons = [(key, why.decode()) for key, why in zip(names[::2], names[1::2], strict=True)]
        return Merged(applied, superseded, refused + reasons)

    def write(self, pairs: list[Pair]) -> Merged:
        fit, refused = _sort_out(pairs, self._largest_value)
        if fit:
            self._done(b"MSET", *(part for pair in fit for part in pair))
        return Merged(len(fit), 0, refused)

    @functools.cached_property
    def _largest_value(self) -> int:
        answer = self._list(b"CONFIG", b"GET", b"proto-max-bulk-len")
        with self._understood(b"CONFIG"):
            return int(_all_bytes(answer)[1])

    def merge_truncation(self, truncation: bytes) -> None:
        if self._client.call(b"MERGETRUNCATION", ORIGIN, truncation) not in (0, 1):
            raise self._strange(b"MERGETRUNCATION")

    def close(self) -> None:
        self._client.close()

    def _bytes(self, *parts: bytes) -> bytes:
        reply = self._client.call(*parts)
        if not isinstance(reply, bytes):
            raise self._strange(parts[0])
        return reply

    def _list(self, *parts: bytes) -> list[Reply]:
        reply = self._client.call(*parts)
        if not isinstance(reply, list):
            raise self._strange(parts[0])
        return reply

    def _done(self, *parts: bytes) -> None:
        """Calls what answers OK."""
        if self._client.call(*parts) != b"OK":
            raise self._strange(parts[0])

    @contextlib.contextmanager
    def _understood(self, command: bytes) -> Iterator[None]:
        """The block makes something of an answer. What goes wrong there is the answer's fault."""
        try:
            yield
        except (ValueError, LookupError, TypeError) as error:
            raise self._strange(command) from error

    def _strange(self, command: bytes) -> MerkleKVError:
        return Unreachable(f"{self.name}: answers {command.decode()} strangely: is it a MerkleKV node?")


def _sort_out(pairs: list[Pair], size_max: int) -> tuple[list[Pair], list[tuple[bytes, str]]]:
    """Those that fit, and the others as refused: to a node, an argument that is too large would end the connection."""
    fit = [pair for pair in pairs if len(pair[1]) <= size_max]
    return fit, [(key, "value size") for key, value in pairs if len(value) > size_max]


def _split(record: bytes) -> tuple[bytes, bytes]:
    return head_of(record), body_of(record)


def _all_bytes(answer: Reply) -> list[bytes]:
    """Raises TypeError for an answer that is something else."""
    if not isinstance(answer, list) or not all(isinstance(part, bytes) for part in answer):
        raise TypeError
    return answer  # type: ignore[return-value]


def _checked_row(row: Row) -> Row:
    """Raises ValueError, LookupError or TypeError unless it is a row of `rows`, or one of a later release."""
    for name in ("node", "store_id", "state", "address", "holds", "contact_ms", "seen_ns", "stable_ns"):
        if not isinstance(row[name], int if name.endswith(("_ms", "_ns")) else str):
            raise TypeError(name)
    return row
