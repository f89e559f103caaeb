"""What befalls single records and rows of tables: loaded dumps, records that vanish, rows that cannot be read.

Here, too, a re-deletion is judged when it happens: a node may re-delete only what a client has deleted or replaced.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any, Final, Self
from unittest import mock

import cbor2

from merklekv.engine.format import OP_SET
from merklekv.engine.record import STORE_ID_SIZE, Pair, is_live, make_record, make_version, store_id_of, timestamp_of
from merklekv.replication.cluster.members import Members
from merklekv.replication.cluster.refused import RefusedRecord
from merklekv.replication.cluster.storage import METADATA_MEMBERS
from merklekv.replication.sync.local_endpoint import LocalEndpoint

from .decay import Decay
from .node import Failure, Node
from .oracle import show
from .steps import KEYS
from .world import NOON

ALWAYS: Final = 1 << 63  # ns: later than every horizon
WHOLE_TABLES: Final = 0.2  # of the tables that are damaged, instead of a row


def _is_told(members: Members, peer: Members, record: bytes) -> bool:
    """Whether a node that brings a record can be told from one that is behind, and the record from a deleted one."""
    table, theirs, time = members.table(), peer.table(), timestamp_of(record)
    writers = {who.store_id for one in (table, theirs) for who in one.applied_through()}
    writer = store_id_of(record) if store_id_of(record) in writers else table.identity.store_id  # of a dump: its holder
    stable_through = (*table.stable_through.items(), *theirs.stable_through.items())
    all_had_it = any(who.store_id == writer and time <= until for who, until in stable_through)
    is_level = theirs.horizon_covers(table.identity) and table.knows_all_of(theirs)
    return is_level and (all_had_it or time > theirs.max_gc_horizon)


class Mishaps(Decay):
    """A cluster whose operators load dumps, and whose nodes lose single records."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._doubtful: dict[
            bytes, set[bytes]
        ] = {}  # by key: records of dumps, or that some node has lost without a trace
        self._exchanged_again = False

    def __enter__(self) -> Self:
        super().__enter__()
        redelete = LocalEndpoint.redelete

        def judged(
            endpoint: LocalEndpoint, pairs: list[Pair], origin: bytes, *rest: Any
        ) -> tuple[int, list[RefusedRecord]]:
            before = {key: endpoint.engine.record(key) for key, _ in pairs}
            result = redelete(endpoint, pairs, origin, *rest)
            for key, version in pairs:
                record = before[key]
                if record is not None and record.startswith(version) and endpoint.engine.record(key) != record:
                    self._judge(endpoint.members, self.nodes[origin.decode()].members, key, record)
            return result

        self._stack.enter_context(mock.patch.object(LocalEndpoint, "redelete", judged))
        return self

    def _judge(self, members: Members, peer: Members, key: bytes, record: bytes) -> None:
        later = any(record < one for one in self._doubtful.get(key, ()))  # what replaced it may have vanished since
        if later or (record in self._doubtful.get(key, ()) and not _is_told(members, peer, record)):
            self.oracle.excuse(key, record)  # a node that is behind brings it: it may as well have been deleted
        elif not self.oracle.is_replaced(key, record):
            raise Failure(f"{members.identity.node}: re-deletes {show(key, record)}, which no client has replaced")

    # -- steps ---------------------------------------------------------------------------------------------------------

    def do_foreign(self, name: str, seed: int) -> None:
        """A dump of a node of another cluster is loaded: records of a writer that nobody knows, from some time ago."""
        node, chance = self.nodes[name], random.Random(seed)
        if not node.up or name in self.gone:
            return
        writer = chance.randbytes(STORE_ID_SIZE)
        with self.as_node(node):
            for key in chance.sample(KEYS, 2):
                version = make_version(chance.randrange(NOON, self.now), writer + chance.randbytes(8))
                record = make_record(key, version, b"d%d" % chance.randrange(10**6))
                self.oracle.attempt(key, record)
                self.oracle.brings([record], ALWAYS)  # it comes back even if it was deleted here
                self._doubtful.setdefault(key, set()).add(record)
                self.unless_stalled(node, partial(node.engine.merge, [(OP_SET, key, record)], b"load"))
                if node.engine.record(key) == record and not node.relapsed:
                    node.uncommitted.append((key, record))
            self.commit(node)

    def do_vanish(self, name: str, seed: int, knower: str = "") -> None:
        """Damage takes a record without a trace: one that all members have applied, or that no horizon has reached.

        `knower`: the node that knows what all members have applied.
        """
        node, chance = self.nodes[name], random.Random(seed)
        if not node.up:
            return
        self.commit(node)
        members = node.members
        known = self.nodes[knower or name].members.stable_through
        stable_through = {who.store_id: until for who, until in known.items()}
        lost = [
            (key, record)
            for key, record in node.records().items()
            if is_live(record)
            and store_id_of(record) in stable_through
            and not stable_through[store_id_of(record)] < timestamp_of(record) <= members.max_gc_horizon
        ]
        if not lost:
            return
        key, record = chance.choice(sorted(lost))
        with self.as_node(node):
            with node.engine.lock:
                node.engine.table.purge(key, record)
            node.engine.commit()
        self._doubtful.setdefault(key, set()).add(record)
        self._reconsider()

    def do_unreadable(self, name: str, seed: int) -> None:
        """A row of the stored table of members is damaged, or the whole table, and the node starts again."""
        node, chance = self.nodes[name], random.Random(seed)
        if not node.up or name in self.gone:
            return
        plain = cbor2.loads(node.members.encode())
        if chance.random() < WHOLE_TABLES:
            damaged = b"damaged"
            node.joined = False
        elif plain["rows"]:
            chance.choice(plain["rows"])[0] = ""
            damaged = cbor2.dumps(plain)
        else:
            return
        with self.as_node(node):
            self.commit(node)
            node.engine.put_metadata(METADATA_MEMBERS, damaged)
            node.engine.commit()
            node.stop()
            node.start()
        self._reconsider()

    # -- the end -------------------------------------------------------------------------------------------------------

    def remove_gone(self) -> None:
        """When all have exchanged again, the rows that cannot be read are removed, too."""
        super().remove_gone()
        for node in self.up() if self._exchanged_again else ():
            self._remove_unreadable(node)
        self._exchanged_again = True

    def _remove_unreadable(self, node: Node) -> None:
        for name in list(node.members.unreadable):
            node.membership.remove(name)
