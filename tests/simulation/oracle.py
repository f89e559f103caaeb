"""What the cluster has to keep for its clients.

The oracle knows every write that a client asked for, with the record that it made.  A write is *sure* once its commit
has returned.  `judge` checks what all nodes agree on in the end:

- a sure write is there, or something newer, or it is below the truncation version, or a newer delete of the same key
  was collected below the GC horizon;
- a record may be there although a delete of it was sure, if that was collected below a horizon that did not cover the
  record's writer, or the writer had lost the record: a node that joins loses nothing; or if a restored node wrote it
  without knowing the delete;
- a lone node keeps no tombstone, so what it writes under a key that it has deleted may have an older version;
- a truncate deletes like a delete of each key: nodes that it has reached may forget it afterwards, but not its effect;
- a record that has expired long before the GC horizon stands for a deletion of its key that was collected;
- a deletion may be gone if a later value of the key, too large for some node, was lost with a disk: that node cannot
  tell what was deleted from what it has refused;
- every record was written by a client;
- every sure truncate is in the truncation version.

What only lived on a node that left, was restored from a backup, or whose disk has damaged it, is sure no more
(`reconsider`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from merklekv.engine.record import (
    ZERO_VERSION,
    expiry_of,
    is_sound,
    is_tombstone,
    store_id_of,
    timestamp_of,
    value_of,
    version_of,
)
from merklekv.replication.cluster.lost_writes import NO_LOST_WRITES, LostWrites, retains

GRACE = 600 * 10**9  # ns between an expiry and the GC horizon that may end the record
TRUNCATION = b""  # the "key" of a truncate; its record is the truncation version


def show(key: bytes, record: bytes) -> str:
    """As people read it; the timestamp without its years."""
    version = f"@{timestamp_of(record) / 1e9 % 1e7:.6f}"
    if key == TRUNCATION:
        return f"truncate {version}"
    return f"{key.decode()} {'deleted' if is_tombstone(record) else value_of(record).decode()} {version}"


def is_over(record: bytes, gc_horizon: int) -> bool:
    """Whether a record may be gone because it has expired: long before a GC horizon, ns, that it is not above."""
    expiry = expiry_of(record)
    return expiry is not None and max(timestamp_of(record), expiry * 10**6 + GRACE) <= gc_horizon


@dataclass
class Holding:
    """What a node has: records, truncation version, GC horizon."""

    records: Mapping[bytes, bytes]
    truncation: bytes
    gc_horizon: int


def sound(holding: Holding) -> Holding:
    """Without the records that the disk has damaged."""
    records = {key: record for key, record in holding.records.items() if is_sound(key, record)}
    return Holding(records, holding.truncation, holding.gc_horizon)


class Covered(NamedTuple):
    """The writers that a horizon covers: all members have applied their writes."""

    stable_through: frozenset[tuple[bytes, int]]  # writers, and up to when, ns
    lost_writes: frozenset[tuple[bytes, LostWrites]]  # but for what these have lost

    def covers(self, version: bytes) -> bool:
        writer = store_id_of(version)
        in_time = timestamp_of(version) <= dict(self.stable_through).get(writer, 0)
        return in_time and retains(dict(self.lost_writes).get(writer, NO_LOST_WRITES), version)


@dataclass
class Oracle:
    """All writes so far."""

    written: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)  # key, version -> record
    sure: dict[bytes, set[bytes]] = field(default_factory=dict)  # key -> versions
    horizons: dict[Covered, int] = field(default_factory=dict)  # see `reaches`
    hidden: dict[bytes, list[tuple[bytes, bytes]]] = field(default_factory=dict)  # key -> behind, up to
    purged: dict[bytes, list[bytes]] = field(default_factory=dict)  # key -> versions that a lone node's deletes hide
    refused: dict[bytes, set[bytes]] = field(default_factory=dict)  # key -> versions that were too large for some node
    late: dict[bytes, int] = field(default_factory=dict)  # version -> horizon when a restored node brought it

    def attempt(self, key: bytes, record: bytes) -> None:
        """A node has made this record; whether it lasts is open."""
        self.written.setdefault(key, {})[version_of(record)] = record

    def reaches(self, covered: Covered, gc_horizon: int) -> None:
        """Some node has this GC horizon, which covers these writers."""
        self.horizons[covered] = max(self.horizons.get(covered, 0), gc_horizon)

    def hides(self, key: bytes, dead: bytes, tombstone: bytes) -> None:
        """A tombstone was put above a dead record (version), and maybe far above: also what was written in between."""
        self.hidden.setdefault(key, []).append((dead, version_of(tombstone)))

    def purges(self, key: bytes, tombstone: bytes) -> None:
        """A lone node has deleted what it had written itself, without this tombstone, which it would else have made."""
        self.purged.setdefault(key, []).append(version_of(tombstone))

    def refuses(self, key: bytes, version: bytes) -> None:
        """A value was too large for some node."""
        self.refused.setdefault(key, set()).add(version)

    def brings(self, records: Iterable[bytes], gc_horizon: int) -> None:
        """A restored node wrote these before its first exchange; the largest horizon of all nodes."""
        for record in records:
            version = version_of(record)
            self.late[version] = max(self.late.get(version, 0), gc_horizon)

    def is_replaced(self, key: bytes, record: bytes) -> bool:
        """Whether a client has deleted this record, or put another in its place."""
        return any(version_of(record) < at for at in (*self.written.get(key, ()), *self.written.get(TRUNCATION, ())))

    def excuse(self, key: bytes, record: bytes) -> None:
        """This record need not be there any more, nor what it has replaced."""
        self.sure[key] = {version for version in self.sure.get(key, ()) if version > version_of(record)}

    def acknowledge(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """The commit that covers these has returned."""
        for key, record in pairs:
            self.sure.setdefault(key, set()).add(version_of(record))

    def reconsider(self, holdings: list[Holding]) -> None:
        """These are all the nodes that are left: what none of them has need not be kept any more."""
        for key, versions in self.sure.items():
            versions -= {version for version in versions if not any(self._has(h, key, version) for h in holdings)}

    def _has(self, holding: Holding, key: bytes, version: bytes) -> bool:
        """Whether it is there, or something newer, or may have been collected since."""
        if version <= holding.truncation:
            return True
        record = holding.records.get(key)
        if record is not None:
            return version_of(record) >= version
        return key != TRUNCATION and self._collected(key, version, holding.gc_horizon)

    def _covers(self, holding: Holding, key: bytes, version: bytes) -> bool:
        record = holding.records.get(key)
        is_late = record is not None and self._came_late(key, version_of(record), version)
        is_excused = is_late or self._is_purged(key, version) or self._is_below_refused(key, version)
        return is_excused or self._has(holding, key, version)

    def _is_purged(self, key: bytes, version: bytes) -> bool:
        """Whether its writer has deleted it when it was alone."""
        return any(version <= at and store_id_of(version) == store_id_of(at) for at in self.purged.get(key, ()))

    def _is_below_refused(self, key: bytes, version: bytes) -> bool:
        """Whether it is a deletion, and what replaced it was too large for some node, and is lost."""
        lost = self.refused.get(key, set()) - self.sure[key]
        return any(version < later for later in lost) and is_tombstone(self.written[key][version])

    def _collected(self, key: bytes, version: bytes, gc_horizon: int) -> bool:
        """Whether a delete at or above `version`, or what has expired, can have been collected."""
        tombstones = [
            (ZERO_VERSION, at)
            for at, record in self.written[key].items()
            if is_tombstone(record) or is_over(record, gc_horizon)
        ]
        truncations = [(ZERO_VERSION, at) for at in self.written.get(TRUNCATION, ())]
        return any(
            behind < version <= at and timestamp_of(at) <= gc_horizon
            for behind, at in tombstones + truncations + self.hidden.get(key, [])
        )

    def _came_late(self, key: bytes, found: bytes, version: bytes) -> bool:
        """Whether a delete of it can have been collected by those who knew nothing of what is there."""
        unknown = [gc_horizon for covered, gc_horizon in self.horizons.items() if not covered.covers(found)]
        return self._collected(key, version, max((self.late.get(found, 0), *unknown)))

    def judge(self, final: Holding) -> list[str]:
        """What is wrong with what the cluster ended with."""
        wrong: list[str] = []
        for key, versions in sorted(self.sure.items()):
            for version in sorted(versions):
                if not self._covers(final, key, version):
                    found = final.records.get(key)
                    there = show(key, found) if found is not None else "nothing"
                    wrong.append(f"acknowledged and lost: {show(key, self.written[key][version])}; there is {there}")
        for key, record in sorted(final.records.items()):
            if self.written.get(key, {}).get(version_of(record)) != record:
                wrong.append(f"never written: {show(key, record)}")
            if record < final.truncation:
                wrong.append(f"below the truncation: {show(key, record)}")
        if final.truncation != ZERO_VERSION and final.truncation not in self.written.get(TRUNCATION, {}):
            wrong.append(f"a truncation that no client asked for: {final.truncation.hex()}")
        return wrong
