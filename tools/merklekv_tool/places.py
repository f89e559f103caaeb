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
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

from merklekv.engine.directory import require_format
from merklekv.engine.engine import Engine
from merklekv.engine.format import FLAGS_AT, INNER_NODES, OP_DEL, OP_SET, TOMBSTONE, VALUE_AT
from merklekv.errors import InvalidArgument, MerkleKVError, NotADataDirectory, Stalled
from merklekv.net.client import Client, Reply, Unreachable
from merklekv.replication.exchange_side import NOTE_MEMBERS
from merklekv.replication.member_rows import Row, rows, stored_members
from merklekv_tool.statuses import FileError

PAGE_RECORDS: Final = 1000
PAGE_BYTES: Final = 1 << 20
ORIGIN: Final = b"merklekv-tool"  # where merged records are said to come from, in the log
BUCKETS_ASKED: Final = 100  # at once
WAIT_S: Final = 1.0

_ADDRESS: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^/:\s]+)):(?P<port>[0-9]{1,5})")

Pair = tuple[bytes, bytes]
T = TypeVar("T")


class Merged(NamedTuple):
    """What became of a batch: counts, and (key, reason) of what was refused."""

    applied: int
    superseded: int
    refused: list[tuple[bytes, str]]


class Place(Protocol):
    """What a verb needs of a directory or a node."""

    name: str

    def count(self) -> int:
        """Records, dead ones too; approximate while a node is written to."""

    def floor(self) -> bytes:
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

    def merge_floor(self, floor: bytes) -> None:
        """Takes a floor in."""

    def close(self) -> None:
        """Lets the place go, with everything durable."""


def address_of(place: str) -> tuple[str, int] | None:
    """Host and port, or None when `place` means a directory."""
    match = _ADDRESS.fullmatch(place)
    if match is None or Path(place).exists():
        return None
    if int(match["port"]) > 65535:
        raise InvalidArgument(f"{place}: a port is a number from 1 to 65535")
    return match["six"] or match["host"], int(match["port"])


@contextlib.contextmanager
def opened(place: str, to_load: bool = False) -> Iterator[Place]:
    """The place that a person named as DIR or HOST:PORT. `to_load`: a directory is made when it is missing."""
    address = address_of(place)
    there: Place = Node(*address) if address else Directory(require_directory(place, to_load), to_load)
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
    if path.is_dir():
        try:
            require_format(path, may_be_new)
        except NotADataDirectory as error:
            raise error if may_be_new else NotADataDirectory(str(error).partition("; ")[0]) from error
        except OSError as error:
            raise FileError(f"{place}: cannot be read: {error.strerror}") from error
    elif not may_be_new or path.exists():
        from merklekv_tool.backups import is_archive

        hint = "; a backup in one file has to be restored first" if is_archive(place) and path.exists() else ""
        raise NotADataDirectory(f"{place}: neither a data directory nor HOST:PORT{hint}")
    return path


class Directory:
    """A data directory that no process has open. Opening it repairs what a start of the node would repair."""

    def __init__(self, path: Path, to_load: bool) -> None:
        self.name = str(path)
        # What is loaded is made durable once, by `close`.
        self._engine = Engine(path, durability="never", absorb="process" if to_load else "manual")

    def count(self) -> int:
        return self._engine.live_count + self._engine.dead_count

    def floor(self) -> bytes:
        return self._engine.floor

    def pages(self, prefix: bytes = b"") -> Iterator[list[Pair]]:
        after: bytes | None = b""
        while after is not None:
            pairs, after = self._engine.records_page(prefix, after, PAGE_RECORDS, PAGE_BYTES)
            yield pairs

    def leaves(self) -> list[bytes]:
        while not self._engine.root_ready:
            self._engine.absorb_sealed()
        return [self._engine.inner_leaves(inner) for inner in range(INNER_NODES)]

    def heads(self, buckets: Sequence[int]) -> Iterator[list[Pair]]:
        while not self._engine.prepare_buckets():
            pass
        return map(self._engine.bucket, buckets)

    def members(self) -> list[Row]:
        note = self._engine.notes.get(NOTE_MEMBERS)
        return rows(stored_members(note), self._engine.horizon, time.time()) if note else []

    def merge(self, pairs: list[Pair]) -> Merged:
        items = [(OP_DEL if record[FLAGS_AT] & TOMBSTONE else OP_SET, key, record) for key, record in pairs]
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

    def merge_floor(self, floor: bytes) -> None:
        self._engine.merge_floor(floor, ORIGIN)
        self._engine.commit()

    def close(self) -> None:
        self._engine.close()


class Node:
    """A running node."""

    def __init__(self, host: str, port: int) -> None:
        self._client = Client(host, port)
        self.name = self._client.name

    def statistics(self) -> dict[str, str]:
        """All of STATS."""
        lines = self._bytes(b"STATS").decode(errors="replace").split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def count(self) -> int:
        figures = self.statistics()
        return int(figures["db_keys"]) + int(figures["db_tombstones"])

    def floor(self) -> bytes:
        return self._bytes(b"FLOOR")

    def root(self) -> bytes:
        """The Merkle root, 32 bytes."""
        return bytes.fromhex(self._bytes(b"HASH").decode())

    def pages(self, prefix: bytes = b"") -> Iterator[list[Pair]]:
        after: Reply = b""
        while isinstance(after, bytes):
            after, parts = self._list(b"RECORDS", after, b"%d" % PAGE_RECORDS, b"PREFIX", prefix)
            assert isinstance(parts, list)
            whole = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
            yield [(key, head + value) for key, head, value in whole]  # type: ignore[misc, operator]

    def leaves(self) -> list[bytes]:
        self._client.send([(b"TREE", b"%d" % inner) for inner in range(INNER_NODES)])
        replies = [self._client.receive() for _ in range(INNER_NODES)]
        if not all(isinstance(reply, bytes) for reply in replies):
            raise self._strange(b"TREE")
        return replies  # type: ignore[return-value]

    def heads(self, buckets: Sequence[int]) -> Iterator[list[Pair]]:
        for start in range(0, len(buckets), BUCKETS_ASKED):
            asked = buckets[start : start + BUCKETS_ASKED]
            self._client.send([(b"BUCKET", b"%d" % bucket) for bucket in asked])
            for _ in asked:
                parts = self._client.receive()
                if not isinstance(parts, list):
                    raise self._strange(b"BUCKET")
                yield list(zip(parts[::2], parts[1::2], strict=True))  # type: ignore[arg-type]

    def members(self) -> list[Row]:
        return [json.loads(line) for line in self._bytes(b"MEMBERS").splitlines()]

    def forget(self, node: str, birth: str) -> None:
        """Lets the node take another one out of the members, for good."""
        self._client.call(b"FORGET", node.encode(), *([birth.encode()] if birth else []))

    def log_list(self) -> tuple[int, int, list[int]]:
        """LSNs: up to where the log is committed, up to where it is absorbed, and where its segments begin."""
        end, absorbed, segments = self._list(b"LOG", b"LIST")
        return end, absorbed, segments  # type: ignore[return-value]

    def log_read(self, segment: int, position: int, size: int) -> bytes | None:
        """Committed bytes of a segment, fewer than asked for at its end; None when it is gone."""
        reply = self._client.call(b"LOG", b"READ", b"%d" % segment, b"%d" % position, b"%d" % size)
        if reply is not None and not isinstance(reply, bytes):
            raise self._strange(b"LOG")
        return reply

    def notes(self) -> dict[bytes, bytes]:
        """What the node keeps with its data."""
        parts = self._list(b"NOTES")
        return dict(zip(parts[::2], parts[1::2], strict=True))  # type: ignore[arg-type]

    def merge(self, pairs: list[Pair]) -> Merged:
        fit, refused = _sort_out(pairs, VALUE_AT + self._largest_value)
        if not fit:
            return Merged(0, 0, refused)
        parts = [part for key, record in fit for part in (key, *_split(record))]
        applied, superseded, named = self._list(b"MERGE", ORIGIN, *parts)
        assert isinstance(named, list)
        reasons = zip(named[::2], named[1::2], strict=True)
        return Merged(applied, superseded, refused + [(key, reason.decode()) for key, reason in reasons])  # type: ignore

    def write(self, pairs: list[Pair]) -> Merged:
        fit, refused = _sort_out(pairs, self._largest_value)
        if fit:
            self._client.call(b"MSET", *(part for pair in fit for part in pair))
        return Merged(len(fit), 0, refused)

    @functools.cached_property
    def _largest_value(self) -> int:
        return int(self._list(b"CONFIG", b"GET", b"proto-max-bulk-len")[1])  # type: ignore[arg-type]

    def merge_floor(self, floor: bytes) -> None:
        self._client.call(b"MERGEFLOOR", ORIGIN, floor)

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

    def _strange(self, command: bytes) -> MerkleKVError:
        return Unreachable(f"{self.name}: answers {command.decode()} strangely: is it a MerkleKV node?")


def _sort_out(pairs: list[Pair], size_max: int) -> tuple[list[Pair], list[tuple[bytes, str]]]:
    """Those that fit, and the others as refused: to a node, an argument that is too large would end the connection."""
    fit = [pair for pair in pairs if len(pair[1]) <= size_max]
    return fit, [(key, "value size") for key, value in pairs if len(value) > size_max]


def _split(record: bytes) -> tuple[bytes, bytes]:
    return record[:VALUE_AT], record[VALUE_AT:]
