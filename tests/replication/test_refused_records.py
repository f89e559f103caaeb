"""Records that a node does not take: an exchange leaves them out, completes, and names them until they are gone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fixtures.exchanges import NOON, SECOND, Node, agree, cluster, exchange, meet_all

from merklekv.engine.record import make_record, version_of
from merklekv.replication.cluster.membership import Membership
from merklekv.replication.sync.messages import ExchangeFailed

LIMIT = 100  # bytes, `max_value_size` of the smaller node
YEAR = 365 * 86_400


def named(node: Node) -> list[tuple[bytes, str, str]]:
    """What a node names: key, reason, and the node that refuses it."""
    refused = Membership(node.engine, node.members).refused()
    return [(one.key, one.reason, one.node) for one in refused]


def settles(*nodes: Node) -> bool:
    """Whether the GC horizon still follows, so that a tombstone of today goes."""
    nodes[0].set(b"deleted")
    meet_all(list(nodes), 1)
    nodes[0].delete(b"deleted")
    for node in nodes:
        node.tick(10)
    meet_all(list(nodes))
    for node in nodes:
        while node.engine.collect_tombstones():
            pass
        node.engine.commit()
    return all(b"deleted" not in node.records() for node in nodes)


@pytest.mark.parametrize("begins", ["a", "b"])
def test_a_record_from_the_future_holds_back_only_itself(
    tmp_path: Path, begins: str, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster(tmp_path) as (a, b, c):
        meet_all([a, b, c])
        a.now += YEAR * SECOND
        a.set(b"future")
        a.now -= YEAR * SECOND
        with caplog.at_level(logging.INFO):
            report = exchange(*(a, b) if begins == "a" else (b, a))
            exchange(a, b)
        assert [(one.key, one.reason, one.node) for one in report.refused] == [(b"future", "clock", "b")]
        assert named(a) == named(b) == [(b"future", "clock", "b")]
        assert caplog.text.count("refused, and left out of exchanges: key b'future': its version is of 2034-05-18") == 2
        assert settles(a, b, c)
        caplog.clear()
        a.delete(b"future")  # the tombstone is as far ahead
        meet_all([a, b, c])
        assert named(a) == [(b"future", "clock", "b"), (b"future", "clock", "c")]
        for node in (a, b, c):
            node.now += YEAR * SECOND
        meet_all([a, b, c])
        assert named(a) == named(b) == named(c) == []
        assert agree(a, b, c)


def test_a_version_with_two_contents_holds_back_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cluster(tmp_path) as (a, b, c):
        version = version_of(make_record(b"k", (NOON).to_bytes(8, "big") + b"sixteen bytes id", b""))
        a.take_event(b"k", make_record(b"k", version, b"one"))
        b.take_event(b"k", make_record(b"k", version, b"two"))
        exchange(a, b)
        assert set(named(a)) <= {(b"k", "conflict", "a"), (b"k", "conflict", "b")}
        assert named(a) == named(b) != []
        assert (a.engine.get(b"k"), b.engine.get(b"k")) == (b"one", b"two")
        assert settles(a, b, c)
        with caplog.at_level(logging.INFO):
            b.set(b"k", b"three")
            assert named(b) == []
            meet_all([a, b, c])
        assert named(a) == named(b) == named(c) == []
        assert "not refused any more: key b'k'" in caplog.text
        assert agree(a, b, c)
        assert a.engine.get(b"k") == b"three"


def test_a_damaged_record_is_named_and_the_exchange_is_not_complete(tmp_path: Path) -> None:
    with cluster(tmp_path, "ab") as (a, b):
        a.set(b"k")
        a.set(b"sound")
        record = a.records()[b"k"]
        a.engine.table.active.records[b"k"] = record[:-1] + b"!"
        try:
            with pytest.raises(ExchangeFailed, match="key b'k': node b refuses it for its digest: it is damaged where"):
                exchange(a, b)
        finally:
            a.engine.table.active.records[b"k"] = record
        assert b.values() == {b"sound": b"value"}
        assert b.members.applied_through(a.members.identity) == 0


def test_a_value_that_is_larger_than_a_message_may_be(tmp_path: Path) -> None:
    """The message with it would be refused whole."""
    with (
        cluster(tmp_path / "l", "l", max_value_size=8 << 20) as (large,),
        cluster(tmp_path / "s", "s", max_value_size=LIMIT) as (small,),
    ):
        for number in range(3):
            large.set(b"large%d" % number, bytes(6 << 20))
        large.set(b"fits")
        small.set(b"own")
        for one, other in ((large, small), (small, large)):
            with pytest.raises(ExchangeFailed, match="3 records refused"):
                exchange(one, other)
            assert set(small.values()) == {b"fits", b"own"}
