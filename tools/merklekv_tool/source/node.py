"""A running node behind its port, as a source of records, and the commands that only a node has.

Another server may listen there: a reply that no node gives raises Unreachable.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from merklekv.address import parse_address
from merklekv.engine.format import LEAF_SIZE, MAX_VALUE_SIZE_LIMIT
from merklekv.engine.merkle import LEAVES_PER_INNER, unpack_inner
from merklekv.engine.record import HEAD_SIZE, VERSION_SIZE, lead_of, value_of, value_size_of
from merklekv.errors import MerkleKVError
from merklekv.metrics import by_label, parse
from merklekv.net.client import REPLY_ROOM_BYTES, REPLY_TIMEOUT_S, Client, Reply, Unreachable
from merklekv.replication.cluster.display import DisplayRow
from merklekv_tool.source.source import ORIGIN, PAGE_RECORDS, TOO_LARGE, Content, Merged, Pair, split_by_size

BUCKETS_ASKED: Final = 100  # at once
FIGURES_BYTES_MAX: Final = 1 << 20  # of STATS, which has some ten thousand, and of replies that are shorter
MEMBERS_BYTES_MAX: Final = REPLY_ROOM_BYTES  # of a full table
ROW_TYPES: Final = dict.fromkeys(
    ("node", "store_id", "state", "address", "holds_back", "refuses", "clock_problem"), str
) | dict.fromkeys(("contact_ms", "applied_through_ns", "stable_ns"), int)


class NodeChange(NamedTuple):
    """A change that a node has told; see docs/protocol.md, CHANGES."""

    key: bytes | None
    op: str
    value: bytes | None
    version: str
    time_ns: int  # of the version
    origin: str
    expiry_ms: int | None


class Node:
    """See `source.Source`. The log of the node is a `merklekv.engine.log.reader.LogSource`."""

    def __init__(self, host: str, port: int, timeout_s: float = REPLY_TIMEOUT_S) -> None:
        """`timeout_s`: for the node to begin a reply; it has to answer at all within ANSWER_TIMEOUT_S."""
        # A dump has to take the largest value that any node may be configured to store.
        self._client = Client(host, port, timeout_s, reply_bytes=MAX_VALUE_SIZE_LIMIT + REPLY_ROOM_BYTES)
        self.name = self._client.name
        try:
            self._client.require_answer()
        except BaseException:
            self._client.close()
            raise

    def statistics(self) -> dict[str, str]:
        """All of STATS."""
        metrics = parse(self._bytes(b"STATS").decode(errors="replace"))
        if not metrics:
            raise self._strange(b"STATS")
        return metrics

    def ping(self) -> None:
        """Returns when it has answered."""
        if self._client.call(b"PING") != b"PONG":
            raise self._strange(b"PING")

    def not_ready(self) -> dict[str, str]:
        """Why it is not ready for clients: sentences by reason."""
        metrics = self.statistics()
        if "ready" not in metrics:
            raise self._strange(b"STATS")
        return by_label(metrics, "not_ready")

    def count(self) -> int:
        with self._understood(b"STATS"):
            metrics = self.statistics()
            if "db_keys" not in metrics:  # it has just started
                self._client.call(b"DBSIZE")  # waits until they are counted
                metrics = self.statistics()
            return sum(int(metrics[name]) for name in ("db_keys", "db_expired", "db_tombstones"))

    def truncation(self) -> bytes:
        truncation = self._bytes(b"TRUNCATION")
        if len(truncation) != VERSION_SIZE:
            raise self._strange(b"TRUNCATION")
        return truncation

    def root(self) -> bytes:
        """The Merkle root, 32 bytes."""
        with self._understood(b"HASH"):
            return bytes.fromhex(self._bytes(b"HASH").decode())

    def pages(self, prefix: bytes = b"") -> Iterator[list[Pair]]:
        after: Reply = b""
        while isinstance(after, bytes):
            before = after
            reply = self._list(b"RECORDS", after, b"%d" % PAGE_RECORDS, b"PREFIX", prefix)
            with self._understood(b"RECORDS"):
                after, parts = reply
                records = zip(*(_all_bytes(parts)[at::3] for at in range(3)), strict=True)
                page = [(key, head + value) for key, head, value in records]
            if isinstance(after, bytes) and after <= before:
                raise self._strange(b"RECORDS")  # it would never end
            yield page

    def inner_digests(self) -> list[bytes]:
        with self._understood(b"TREE"):
            return unpack_inner(self._bytes(b"TREE"))

    def leaves(self, inner: Sequence[int]) -> list[bytes]:
        self._client.send([(b"TREE", b"%d" % node) for node in inner])
        replies = [self._client.receive() for _ in inner]
        if not all(isinstance(reply, bytes) and len(reply) == LEAVES_PER_INNER * LEAF_SIZE for reply in replies):
            raise self._strange(b"TREE")
        return replies  # type: ignore[return-value]

    def heads(self, buckets: Sequence[int]) -> Iterator[list[Pair]]:
        for start in range(0, len(buckets), BUCKETS_ASKED):
            asked = buckets[start : start + BUCKETS_ASKED]
            self._client.send([(b"BUCKET", b"%d" % bucket) for bucket in asked])
            for _ in asked:
                with self._understood(b"BUCKET"):
                    pairs = _pairs(self._client.receive())
                if any(len(head) != HEAD_SIZE for _, head in pairs):
                    raise self._strange(b"BUCKET")
                yield pairs

    def members(self) -> list[DisplayRow]:
        with self._understood(b"MEMBERS"):
            lines = io.BytesIO(
                self._bytes(b"MEMBERS", reply_bytes=MEMBERS_BYTES_MAX)
            )  # one at a time: each may be empty
            return [_checked_row(json.loads(line)) for line in lines if line.strip()]

    def forget(self, node: str, store_id: str) -> None:
        """Makes the node remove a member from its cluster for good."""
        self._expect_ok(b"FORGET", node.encode(), *([store_id.encode()] if store_id else []))

    def sync(self, address: str, full: bool, verify: bool) -> None:
        """Makes the node exchange with the node at an address, and waits. Raises NodeError if that fails."""
        host, port = parse_address(address)
        flags = [flag for flag, is_given in ((b"--full", full), (b"--verify", verify)) if is_given]
        self._expect_ok(b"SYNC", host.encode(), b"%d" % port, *flags)

    def log_list(self) -> tuple[int, int, list[int]]:
        """LSNs: the end of the committed log, the checkpoint, and where each segment begins."""
        with self._understood(b"LOG"):
            end, checkpoint_lsn, segments = self._list(b"LOG", b"LIST")
            if not isinstance(segments, list) or not all(
                isinstance(lsn, int) for lsn in (end, checkpoint_lsn, *segments)
            ):
                raise TypeError
        return end, checkpoint_lsn, segments  # type: ignore[return-value]

    def segments(self) -> list[int]:
        """LSNs of the log's segments, in order."""
        return self.log_list()[2]

    def read(self, segment: int, position: int, size: int) -> bytes | None:
        """Committed bytes of a segment of the log, fewer than `size` at its end; None if it was deleted."""
        reply = self._client.call(b"LOG", b"READ", b"%d" % segment, b"%d" % position, b"%d" % size)
        if reply is not None and not isinstance(reply, bytes):
            raise self._strange(b"LOG")
        return reply

    def changes(self, cursor: bytes, prefix: bytes, wait_ms: int) -> tuple[bytes, list[NodeChange]]:
        """The next cursor, and what was changed before it; waits so long for something. Raises NodeError."""
        options = [b"COUNT", b"%d" % PAGE_RECORDS] + ([b"BLOCK", b"%d" % wait_ms] if wait_ms else [])
        with self._understood(b"CHANGES"):
            following, found = self._list(b"CHANGES", cursor, b"PREFIX", prefix, *options)
            if not isinstance(following, bytes) or not isinstance(found, list):
                raise TypeError
            following.decode("ascii")
            return following, [_checked_change(change) for change in found]

    def metadata(self) -> dict[bytes, bytes]:
        """The metadata entries."""
        with self._understood(b"METADATA"):
            return dict(_pairs(self._list(b"METADATA")))

    def merge(self, pairs: list[Pair]) -> Merged:
        fit = [pair for pair in pairs if value_size_of(pair[1]) <= self._largest_value]
        refused = [(key, TOO_LARGE) for key, record in pairs if value_size_of(record) > self._largest_value]
        if not fit:
            return Merged(0, 0, refused)
        parts = [part for key, record in fit for part in (key, lead_of(record), value_of(record))]
        with self._understood(b"MERGE"):
            applied, superseded, named = self._list(b"MERGE", ORIGIN, *parts)
            if not isinstance(applied, int) or not isinstance(superseded, int):
                raise TypeError
            reasons = [(key, reason.decode()) for key, reason in _pairs(named)]
        return Merged(applied, superseded, refused + reasons)

    def write(self, contents: list[Content]) -> Merged:
        fit, refused = split_by_size(contents, self._largest_value)
        expiries = [(b"PXAT", b"%d" % expiry) if expiry is not None else () for _, _, expiry in fit]
        self._client.send([(b"SET", *content[:2], *expiry) for content, expiry in zip(fit, expiries, strict=True)])
        if any(self._client.receive() != b"OK" for _ in fit):
            raise self._strange(b"SET")
        return Merged(len(fit), 0, refused)

    @functools.cached_property
    def _largest_value(self) -> int:
        with self._understood(b"CONFIG"):
            return int(_all_bytes(self._list(b"CONFIG", b"GET", b"proto-max-bulk-len"))[1])

    def merge_truncation(self, truncation: bytes) -> None:
        if self._client.call(b"MERGETRUNCATION", ORIGIN, truncation) not in (0, 1):
            raise self._strange(b"MERGETRUNCATION")

    def close(self) -> None:
        self._client.close()

    def _bytes(self, *parts: bytes, reply_bytes: int = FIGURES_BYTES_MAX) -> bytes:
        reply = self._client.call(*parts, reply_bytes=reply_bytes)
        if not isinstance(reply, bytes):
            raise self._strange(parts[0])
        return reply

    def _list(self, *parts: bytes) -> list[Reply]:
        reply = self._client.call(*parts)
        if not isinstance(reply, list):
            raise self._strange(parts[0])
        return reply

    def _expect_ok(self, *parts: bytes) -> None:
        if self._client.call(*parts) != b"OK":
            raise self._strange(parts[0])

    @contextmanager
    def _understood(self, command: bytes) -> Iterator[None]:
        """The block decodes a reply to a command: an error there means that the reply is wrong."""
        try:
            yield
        except (ValueError, LookupError, TypeError) as error:
            raise self._strange(command) from error

    def _strange(self, command: bytes) -> MerkleKVError:
        return Unreachable(f"{self.name}: answers {command.decode()} strangely: is it a MerkleKV node?")


def _all_bytes(reply: Reply) -> list[bytes]:
    """Raises TypeError for a reply of another type."""
    if not isinstance(reply, list) or not all(isinstance(part, bytes) for part in reply):
        raise TypeError
    return reply  # type: ignore[return-value]


def _pairs(reply: Reply) -> list[Pair]:
    """Raises TypeError and ValueError for a reply of another shape."""
    parts = _all_bytes(reply)
    return list(zip(parts[::2], parts[1::2], strict=True))


def _checked_change(reply: Reply) -> NodeChange:
    """Raises TypeError or ValueError for a reply of another shape."""
    if not isinstance(reply, list):
        raise TypeError
    key, op, value, version, origin, *expiry = reply
    if not isinstance(op, bytes) or not isinstance(version, bytes) or not isinstance(origin, bytes):
        raise TypeError
    if not isinstance(key, bytes | None) or not isinstance(value, bytes | None):
        raise TypeError
    expiry_ms = expiry[0] if expiry else None
    if not isinstance(expiry_ms, int | None):
        raise TypeError
    time_ns = int(version.partition(b"-")[0])
    return NodeChange(key, op.decode(), value, version.decode(), time_ns, origin.decode(errors="replace"), expiry_ms)


def _checked_row(row: DisplayRow) -> DisplayRow:
    """Raises LookupError or TypeError unless it has the fields of a row; a later release may add others."""
    for name, kind in ROW_TYPES.items():
        if not isinstance(row[name], kind):
            raise TypeError(name)
    return row
