"""Refused records: records that an exchange leaves out, because the node that lacks them does not take them for now.

    value size    the value is larger than `max_value_size` of that node
    clock         the version is too far ahead of its wall clock
    conflict      it has a record of the same version, but with other contents

An exchange with such records completes all the same.  Each is named in the log, by `MEMBERS` and `STATS`, and in the
error of `SYNC`, until it is taken or there is a newer one under its key.  A record that is refused for another reason
is damaged, or made by another release: then the exchange is not complete.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from merklekv.engine.engine import Engine
from merklekv.engine.format import MAX_KEY_SIZE
from merklekv.engine.record import (
    HEAD_SIZE,
    VERSION_SIZE,
    ZERO_VERSION,
    timestamp_of,
    value_size_of,
    version_of,
)
from merklekv.engine.time_gate import show_time
from merklekv.replication.plain_cbor import Fields, Malformed

TOO_LARGE: Final = "value size"
CLOCK: Final = "clock"
CONFLICT: Final = "conflict"
REFUSED_MAX: Final = 1000  # values too large of one node, or in one exchange; of others no more are named
_LEFT_OUT: Final = {
    TOO_LARGE: "its value has {size:,} bytes, more than max_value_size of node {node}",
    CLOCK: "its version is of {time}, too far ahead of the wall clock of node {node}",
    CONFLICT: "node {node} has a record of the same version with other contents",
}
_ADVICE: Final = {CLOCK: "set that clock if it is slow; else run merklekv restamp where the record is stored"}
_REASON_SIZE_MAX: Final = 20
_KEYS_MAX: Final = 10  # named at once

log = logging.getLogger(__name__)


class RefusedRecord(NamedTuple):
    """A record that a node does not take."""

    key: bytes
    version: bytes  # 24 bytes
    reason: str
    size: int  # bytes of its value
    node: str  # the node that does not take it
    after: bytes = b""  # of an exception, see exceptions.py

    @property
    def is_left_out(self) -> bool:
        """Whether an exchange is complete without it."""
        return self.reason in _LEFT_OUT

    @property
    def why(self) -> str:
        """The reason, for people."""
        text = _LEFT_OUT.get(self.reason, "node {node} refuses it for its {reason}: it is damaged where it is stored")
        time = show_time(timestamp_of(self.version))
        return text.format(size=self.size, time=time, node=self.node, reason=self.reason)

    @property
    def advice(self) -> str:
        """What to do, for people, if the reason does not say it."""
        return _ADVICE.get(self.reason, "")

    @property
    def name(self) -> str:
        """The key, for people."""
        return repr(self.key[:100])

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"key {self.name}", self.why, self.advice)))


def refused_record(key: bytes, record: bytes, reason: str, node: str) -> RefusedRecord:
    """A record, whole or damaged, that a node refuses."""
    if len(record) < HEAD_SIZE:
        return RefusedRecord(key[:MAX_KEY_SIZE], ZERO_VERSION, reason, 0, node)
    return RefusedRecord(key[:MAX_KEY_SIZE], version_of(record), reason, max(0, value_size_of(record)), node)


def split_by_size(
    pairs: list[tuple[bytes, bytes]], max_value_size: int, node: str
) -> tuple[list[tuple[bytes, bytes]], list[RefusedRecord]]:
    """Keys with records: those that a node with this `max_value_size` takes, and those that are too large for it."""
    too_large = [refused_record(*pair, TOO_LARGE, node) for pair in pairs if value_size_of(pair[1]) > max_value_size]
    return [pair for pair in pairs if value_size_of(pair[1]) <= max_value_size] if too_large else pairs, too_large


def decode_refused(fields: Fields, name: str, count_max: int = REFUSED_MAX) -> list[RefusedRecord]:
    """The refused records in a field: a list of lists.  Raises Malformed."""
    found = []
    for row in fields.rows(name, count_max, *RefusedRecord._fields):
        key = row.binary("key")
        if len(key) > MAX_KEY_SIZE:
            raise Malformed(f"key has {len(key)} bytes, more than {MAX_KEY_SIZE}")
        reason, size = row.text("reason", _REASON_SIZE_MAX), row.number("size")
        version, after = row.binary("version", VERSION_SIZE), row.binary("after", 0, VERSION_SIZE)
        found.append(RefusedRecord(key, version, reason, size, row.node_id("node"), after))
    return found


def has_ended(one: RefusedRecord, engine: Engine, own_node: str) -> bool:
    """Whether a node, by what it holds, knows that the record is not refused any more: it was taken, or superseded."""
    here = version_of(engine.record(one.key) or b"") if one.key else b""
    is_taken = here == one.version and one.node == own_node and one.reason != CONFLICT
    return is_taken or here > one.version or one.version < engine.truncation


def in_words(refused: Iterable[RefusedRecord], with_advice: bool = True) -> list[str]:
    """A text for each node and reason, with the first keys."""
    groups: dict[tuple[str, str], list[RefusedRecord]] = {}
    for one in sorted(refused):
        groups.setdefault((one.node, one.reason), []).append(one)
    return [_group_in_words(group, with_advice) for group in groups.values()]


def _group_in_words(group: list[RefusedRecord], with_advice: bool) -> str:
    first, *others = group
    likewise = ", ".join(one.name for one in others[: _KEYS_MAX - 1])
    more = f" and {len(group) - _KEYS_MAX} more" if len(group) > _KEYS_MAX else ""
    text = f"key {first.name}: {first.why}" + (f"; likewise {likewise}{more}" if others else "")
    return f"{text}: {first.advice}" if with_advice and first.advice else text


class RefusedRecords:
    """What this node and its peers refuse, as the last exchange with each peer found.  Not stored.

    What is new or gone is logged.  Callers hold the engine's lock.
    """

    def __init__(self) -> None:
        self._by_peer: dict[str, frozenset[RefusedRecord]] = {}

    def __iter__(self) -> Iterator[RefusedRecord]:
        """In order of the keys."""
        return iter(sorted(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def update(self, peer: str, refused: Iterable[RefusedRecord]) -> None:
        """An exchange with a node has found these.

        In a conflict either node refuses the other's record, as the exchange begins here or there: the first one stays.
        """
        before = {(one.key, one.version): one for one in self._by_peer.get(peer, ()) if one.reason == CONFLICT}
        found = (before.get((one.key, one.version), one) if one.reason == CONFLICT else one for one in refused)
        self._replace({**self._by_peer, peer: frozenset(found)})

    def drop(self, has_ended: Callable[[RefusedRecord], bool]) -> None:
        """Some are not refused any more."""
        ended = set(filter(has_ended, self._all()))
        self._replace({peer: refused - ended for peer, refused in self._by_peer.items()})

    def _all(self) -> frozenset[RefusedRecord]:
        return frozenset[RefusedRecord]().union(*self._by_peer.values())

    def _replace(self, by_peer: dict[str, frozenset[RefusedRecord]]) -> None:
        before = self._all()
        self._by_peer = {peer: refused for peer, refused in by_peer.items() if refused}
        after = self._all()
        for text in in_words(after - before):
            log.warning("refused, and left out of exchanges: %(reason)s", {"reason": text})
        for text in in_words(before - after, with_advice=False):
            log.info("not refused any more: %(reason)s", {"reason": text})
