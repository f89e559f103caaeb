"""Records that a node does not take: an exchange leaves them out, completes, and names them until they are gone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.exchanges import NOON, SECOND, Node, agree, carry, cluster, exchange, meet_all
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.record import make_record, make_version, store_id_of, timestamp_of, version_of
from merklekv.replication.cluster import members as members_module
from merklekv.replication.cluster.exceptions import Exceptions, by_key, is_excepted, unite
from merklekv.replication.cluster.membership import Membership
from merklekv.replication.cluster.refused import RefusedRecord
from merklekv.replication.sync import initiator as initiator_module
from merklekv.replication.sync import responder as responder_module
from merklekv.replication.sync.local_endpoint import LocalEndpoint
from merklekv.replication.sync.messages import ExchangeFailed

LIMIT = 100  # bytes, `max_value_size` of the small node
LARGE = b"v" * (LIMIT + 1)
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
def test_of_very_many_refused_records_as_many_are_kept_as_decide(
    tmp_path: Path, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initiator_module, "REFUSED_MAX", 3)
    with cluster(tmp_path) as (a, b, _):
        meet_all([a, b])
        b.reopen(max_value_size=LIMIT)
        for number in range(20):
            a.set(b"large %d" % number, LARGE)
        a.set(b"small")
        first, second = (a, b) if begins == "a" else (b, a)
        initiator = first.initiate()
        with pytest.raises(ExchangeFailed, match="more than 3 records refused, more than the 3 too large ones"):
            carry(initiator.steps(), second)
        assert len(initiator.report.refused) == 4
        assert b.values() == {b"small": b"value"}


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
        with caplog.at_level(logging.INFO):
            exchange(a, b)
            first = named(a)
            assert first in ([(b"k", "conflict", "a")], [(b"k", "conflict", "b")])
            for begins, answers in ((b, a), (a, b)):  # each time the node that begins refuses the other's record
                exchange(begins, answers)
                assert named(a) == named(b) == first
        assert caplog.text.count("refused, and left out of exchanges") == 2
        assert "not refused any more" not in caplog.text
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


@pytest.mark.parametrize("begins", ["a", "b"])
def test_a_damaged_record_is_not_re_deleted(tmp_path: Path, begins: str) -> None:
    """Nobody knows what version it had. Once it is as it was, it is."""
    with cluster(tmp_path, "ab") as (a, b):
        a.set(b"k")
        meet_all([a, b])
        copy = a.backup()
        b.delete(b"k")
        meet_all([a, b])
        meet_all([a, b])
        a.restore(copy)
        a.set(b"sound")
        record = a.engine.record(b"k") or b""
        a.engine.table.active.records[b"k"] = flipped = record[:23] + bytes([record[23] ^ 1]) + record[24:]
        try:
            with pytest.raises(ExchangeFailed, match="key b'k': node a refuses it for its digest: it is damaged where"):
                exchange(*((a, b) if begins == "a" else (b, a)))
            assert a.engine.record(b"k") == flipped
        finally:
            a.engine.table.active.records[b"k"] = record
        assert b.values() == {b"sound": b"value"}
        exchange(a, b)
        assert a.values() == b.values() == {b"sound": b"value"}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    """Two nodes that take any value, and a small one."""
    with cluster(tmp_path, "ab") as both, cluster(tmp_path, "s", max_value_size=LIMIT) as (small,):
        yield [*both, small]


def stays(node: Node, key: bytes) -> bool:
    return node.engine.get(key) == LARGE


@pytest.mark.parametrize("begins", ["a", "s"])
def test_a_value_that_is_too_large_holds_back_only_itself(
    nodes: list[Node], begins: str, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, s = nodes
    a.set(b"fits", b"v" * LIMIT)
    a.set(b"large", LARGE)
    s.set(b"own")
    with caplog.at_level(logging.INFO):
        report = exchange(*(a, s) if begins == "a" else (s, a))
        assert report.refused == [RefusedRecord(b"large", version_of(a.records()[b"large"]), "value size", 101, "s")]
        assert named(a) == named(s) == [(b"large", "value size", "s")]
        assert settles(a, b, s)
        s.reopen()
        assert named(s) == [(b"large", "value size", "s")], "it is stored"
        assert settles(a, b, s)
    assert set(s.values()) == {b"fits", b"own"}
    assert stays(a, b"large")
    assert stays(b, b"large")
    told = (
        "refused, and left out of exchanges: key b'large': its value has 101 bytes, more than max_value_size of node s"
    )
    assert caplog.text.count(told) == 4, "once by each node, and by the small one at its second start"


def test_the_row_of_a_node_says_what_it_refuses(nodes: list[Node]) -> None:
    a, _, s = nodes
    for number in range(12):
        a.set(b"large%02d" % number, LARGE)
    exchange(a, s)
    why = "its value has 101 bytes, more than max_value_size of node s"
    for node in (a, s):
        rows = {str(row["node"]): str(row["refuses"]) for row in Membership(node.engine, node.members).rows()}
        assert rows["a"] == ""
        likewise = ", ".join(f"b'large{number:02}'" for number in range(1, 10))
        assert rows["s"] == f"key b'large00': {why}; likewise {likewise} and 2 more"


@pytest.mark.parametrize("end", ["limit", "delete", "overwrite", "truncate", "event"])
def test_what_ends_a_refusal(nodes: list[Node], end: str, caplog: pytest.LogCaptureFixture) -> None:
    a, _, s = nodes
    a.set(b"large", LARGE)
    meet_all(nodes)
    with caplog.at_level(logging.INFO):
        if end == "limit":
            s.reopen(max_value_size=len(LARGE))
        elif end == "delete":
            a.delete(b"large")
        elif end == "overwrite":
            a.set(b"large", b"small")
        elif end == "truncate":
            a.tick()
            a.engine.truncate()
        else:
            s.tick(10)
            s.set(b"large", b"by itself")
            assert named(s) == []
        meet_all(nodes)
        assert not any(map(named, nodes))
        assert not any(node.members.refused for node in nodes)
    assert "not refused any more: key b'large'" in caplog.text
    assert agree(*nodes)
    assert settles(*nodes)


@pytest.mark.parametrize("begins", ["holder", "s"])
@pytest.mark.parametrize("restored", [False, True])
def test_what_a_node_has_refused_is_not_deleted_elsewhere(nodes: list[Node], begins: str, restored: bool) -> None:
    a, b, s = nodes
    a.set(b"large", LARGE)
    backup = None
    if restored:
        meet_all(nodes)
        backup = b.backup()
        meet_all(nodes)
    for _ in range(2):
        exchange(a, s)
        if backup is not None:
            b.restore(backup)
        assert exchange(*(b, s) if begins == "holder" else (s, b)).discarded == 0
        assert exchange(s, a).discarded == 0
    assert stays(a, b"large")
    meet_all(nodes)
    assert stays(a, b"large")
    assert stays(b, b"large")
    s.reopen(max_value_size=1000)
    meet_all(nodes)
    assert agree(*nodes)
    assert stays(s, b"large")


@pytest.mark.parametrize("begins", ["holder", "s"])
def test_an_old_record_of_a_key_that_a_node_has_refused(nodes: list[Node], begins: str) -> None:
    """A tombstone above the old record would be above the new one, too."""
    a, b, s = nodes
    a.set(b"k", b"old")
    meet_all([a, b])
    backup = b.backup()
    a.set(b"k", LARGE)
    meet_all([a, b])
    meet_all(nodes)
    meet_all(nodes)
    assert s.engine.get(b"k") is None
    b.restore(backup)
    assert exchange(*(b, s) if begins == "holder" else (s, b)).discarded == 0
    meet_all(nodes)
    assert stays(a, b"k")
    assert stays(b, b"k")
    assert named(s) == [(b"k", "value size", "s")]


@pytest.mark.parametrize("begins", ["b", "s"])
def test_a_late_deletion_of_what_a_node_has_refused(nodes: list[Node], begins: str) -> None:
    """It is below the horizon of the others, and only s hears of it, which has nothing to delete."""
    a, b, s = nodes
    a.set(b"k", LARGE)
    b.set(b"k", b"v")
    b.delete(b"k")
    for node in (a, s):
        node.tick(100)
    for _ in range(3):
        exchange(a, s)
    assert s.engine.gc_horizon > timestamp_of(b.records()[b"k"])
    exchange(*(b, s) if begins == "b" else (s, b))
    meet_all(nodes)
    meet_all(nodes)
    assert agree(*nodes)
    assert [node.values() for node in nodes] == [{}] * 3


@pytest.mark.parametrize("begins", ["b", "s"])
def test_a_node_that_gets_its_records_from_one_that_has_refused_some(nodes: list[Node], begins: str) -> None:
    a, b, s = nodes
    a.set(b"large", LARGE)
    exchange(a, s)
    exchange(*(b, s) if begins == "b" else (s, b))
    assert b.members.applied_through(a.members.identity) > 0
    assert named(b) == [(b"large", "value size", "s")]
    exchange(s, b)
    exchange(*(b, a) if begins == "b" else (a, b))
    assert stays(a, b"large")
    assert stays(b, b"large")
    assert b.members.refused == {}


def test_a_backup_with_a_refusal_of_what_was_deleted_since(nodes: list[Node]) -> None:
    a, b, s = nodes
    a.set(b"large", LARGE)
    meet_all(nodes)
    holding, refusing = a.backup(), s.backup()
    a.delete(b"large")
    meet_all(nodes)
    meet_all(nodes)
    assert not any(node.records() for node in nodes)
    s.restore(refusing)
    assert named(s) == [(b"large", "value size", "s")]
    exchange(s, b)
    assert named(s) == named(b) == [], "b has applied it, and does not have it any more"
    s.reopen(max_value_size=1000)
    a.restore(holding)
    exchange(a, s)
    meet_all(nodes)
    assert not any(node.values() for node in nodes)


def test_a_tombstone_from_below_the_horizon_that_is_older_than_what_a_node_has_refused(nodes: list[Node]) -> None:
    """It cannot be kept, and a deletion now would also delete the newer record elsewhere."""
    a, b, s = nodes
    s.set(b"k", b"old")
    b.take_event(b"k", s.records()[b"k"])
    b.now = s.now
    b.delete(b"k")
    for node in nodes:
        node.tick(10)
    a.set(b"k", LARGE)
    meet_all([a, s])
    meet_all([a, s])
    assert version_of(b.records()[b"k"]) < s.engine.gc_horizon.to_bytes(8, "big")
    assert s.values() == {b"k": b"old"}
    meet_all([b, s], 1)
    meet_all(nodes)
    assert stays(a, b"k")
    assert stays(b, b"k")


def test_a_refused_record_that_no_node_has_any_more(nodes: list[Node]) -> None:
    a, _, s = nodes
    a.set(b"large", LARGE)
    exchange(a, s)
    a.empty()
    for _ in range(2):
        exchange(a, s)
    assert named(a) == named(s) == [(b"large", "value size", "s")]
    s.tick(10)
    s.set(b"large", b"anew")
    exchange(s, a)
    assert named(a) == named(s) == []
    assert a.members.refused == s.members.refused == {}


@pytest.mark.parametrize("begins", ["a", "b"])
def test_a_refusal_of_a_version_from_the_future_ends_with_the_horizon(nodes: list[Node], begins: str) -> None:
    """No record would end it."""
    a, b, _ = nodes
    lies = [
        RefusedRecord(b"k", make_version(a.now + YEAR * SECOND, bytes(16)), "value size", 101, name) for name in "ab"
    ]
    b.members.refused = by_key([lies[1]])
    exchange(*(a, b) if begins == "a" else (b, a))
    assert a.members.refused == {}
    LocalEndpoint(a.engine, a.members, "").complete(a.members.table(), 0, lies)
    assert [one.reason for one in a.members.refused.values()] == ["clock"]
    assert settles(*nodes)
    assert a.members.refused == {}


@pytest.mark.parametrize("told", [False, True])
def test_what_a_removed_member_has_refused_is_not_named_any_more(nodes: list[Node], told: bool) -> None:
    a, b, _ = nodes
    a.set(b"large", LARGE)
    meet_all(nodes)
    assert named(a) == named(b) == [(b"large", "value size", "s")]
    Membership(a.engine, a.members).remove("s")
    if told:
        exchange(a, b)
    assert named(b if told else a) == []


def test_any_number_of_records_from_the_future_holds_back_nothing_else(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No node keeps more of them than it names, so a burst of writes by a wrong clock keeps no tombstones."""
    for module in (members_module, initiator_module):
        monkeypatch.setattr(module, "REFUSED_MAX", 2)
    a, b, s = nodes
    meet_all(nodes)
    a.now += YEAR * SECOND
    for number in range(5):
        a.set(b"future%d" % number)
    a.now -= YEAR * SECOND
    a.set(b"large", LARGE)
    for one, other in ((a, s), (s, a)):
        assert len(exchange(one, other).refused) == 4, "of each reason one more"
        for node in (a, s):
            assert [reason for _, reason, _ in named(node)] == ["clock", "value size"], "as many as a node names"
    assert [key for key, _ in s.members.refused] == [b"large", b"future0"]
    assert settles(a, b, s)


@pytest.mark.parametrize("begins", ["a", "b"])
def test_what_a_refused_record_has_replaced_is_not_deleted_where_it_is_restored(tmp_path: Path, begins: str) -> None:
    """The clock of `a` is wrong, so no other node takes what it writes; then it is restored to where it was right."""
    keys = [b"k%d" % number for number in range(3)]
    with cluster(tmp_path) as (a, b, c):
        meet_all([a, b, c])
        for key in keys:
            a.set(key)
        copy = a.backup()
        a.now += YEAR * SECOND
        for key in keys[:-1]:
            a.set(key, b"later")
        a.delete(keys[-1])
        a.now -= YEAR * SECOND
        for _ in range(2):
            meet_all([a, b, c])
            a.tick(100)
        assert b.values() == c.values() == {}
        a.restore(copy)
        exchange(*(a, b) if begins == "a" else (b, a))
        meet_all([a, b, c])
        assert a.values().keys() == set(keys)
        assert agree(a, b, c)
        a.delete(keys[0])
        assert settles(a, b, c)
        assert not any(node.members.refused for node in (a, b, c))
        assert agree(a, b, c)
        assert a.values().keys() == set(keys[1:])


@pytest.mark.parametrize("begins", ["a", "s"])
def test_what_a_large_value_from_the_future_has_replaced_is_not_deleted_where_it_is_restored(
    nodes: list[Node], begins: str
) -> None:
    a, _, s = nodes
    meet_all([a, s])
    a.set(b"k")
    copy = a.backup()
    a.now += YEAR * SECOND
    a.set(b"k", LARGE)
    a.now -= YEAR * SECOND
    for _ in range(2):
        meet_all([a, s])
        a.tick(100)
    assert s.values() == {}
    a.restore(copy)
    assert exchange(*(a, s) if begins == "a" else (s, a)).discarded == 0
    meet_all([a, s])
    assert a.values() == {b"k": b"value"}
    assert agree(a, s)


@pytest.mark.parametrize("begins", ["b", "s"])
@pytest.mark.parametrize("value", [b"later", LARGE])
@pytest.mark.parametrize("is_restored", [False, True])
def test_a_value_that_is_too_large_where_a_wrong_clock_has_written_its_key(
    nodes: list[Node], begins: str, value: bytes, is_restored: bool
) -> None:
    """A restored node brings the value back: what has come in its place elsewhere is no deletion of it."""
    a, b, s = nodes
    a.set(b"k", LARGE)
    meet_all(nodes)
    copy = b.backup()
    meet_all(nodes)
    before = a.backup()
    a.now += YEAR * SECOND
    a.set(b"k", value)
    a.now -= YEAR * SECOND
    meet_all(nodes, 1)
    if is_restored:
        a.restore(before)
        a.tick(100)
        meet_all([a, s])
    b.restore(copy)
    assert exchange(*(b, s) if begins == "b" else (s, b)).discarded == 0
    assert stays(b, b"k")
    if is_restored:
        meet_all(nodes)
        assert agree(a, b)
        assert [reason for _, reason, _ in named(s)] == ["value size"]


def test_more_refused_records_than_are_kept(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    a, _, s = nodes
    for module in (members_module, initiator_module):
        monkeypatch.setattr(module, "REFUSED_MAX", 2)
    for number in range(3):
        a.set(b"large%d" % number, LARGE)
        if number == 1:
            exchange(a, s)
    applied = s.members.applied_through(a.members.identity)
    for one, other in ((a, s), (s, a)):
        with pytest.raises(ExchangeFailed, match=r"more than 2 records refused, more than the 2 .* key b'large"):
            exchange(one, other)
    assert s.members.applied_through(a.members.identity) == applied, "not complete"
    a.delete(b"large0")
    exchange(a, s)
    assert len(a.values()) == len(named(s)) == 2


def test_page_by_page_an_answer_names_a_part_of_what_is_too_large(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, s = nodes
    for module in (initiator_module, responder_module):
        monkeypatch.setattr(module, "BATCH_RECORDS", 10)
    monkeypatch.setattr(responder_module, "SLICE_READS", 5)
    for number in range(100):
        a.set(b"large%02d" % number, LARGE)
    a.set(b"small")
    assert len(exchange(s, a).refused) == 100
    assert s.values() == {b"small": b"value"}


def test_as_many_refused_records_as_may_be_are_named_if_the_exchange_fails_for_them(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, s = nodes
    for module in (members_module, initiator_module):
        monkeypatch.setattr(module, "REFUSED_MAX", 2)
    for number in range(3):
        a.set(b"large%d" % number, LARGE)
    with pytest.raises(ExchangeFailed):
        exchange(a, s)
    assert named(a) == [(b"large%d" % number, "value size", "s") for number in range(2)]
    for number in range(3):
        a.delete(b"large%d" % number)
    exchange(a, s)
    assert named(a) == []


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
            assert len(exchange(one, other).refused) == 3
            assert set(small.values()) == {b"fits", b"own"}


STORE_IDS = st.just(b"oslo....")
THROUGH = st.dictionaries(STORE_IDS, st.integers(0, 9))
EXCEPTIONS = st.dictionaries(
    st.tuples(st.sampled_from([b"k", b"l"]), st.sampled_from(["value size", "clock"])),
    st.tuples(st.integers(1, 9), STORE_IDS, st.integers(0, 8)),
).map(
    lambda drawn: by_key(
        RefusedRecord(
            key,
            make_version(time, store_id + bytes(8)),
            reason,
            101,
            "s",
            make_version(min(after, time - 1), bytes(16)),
        )
        for (key, reason), (time, store_id, after) in drawn.items()
    )
)


VERSIONS = [make_version(time, b"oslo...." + bytes(8)) for time in range(1, 10)]


def of_key(exceptions: Exceptions, key: bytes) -> list[RefusedRecord]:
    return [one for one in exceptions.values() if one.key == key]


def lacks(exceptions: Exceptions, through: dict[bytes, int], key: bytes, version: bytes) -> bool:
    """Whether a node may never have had a version."""
    if is_excepted(exceptions, key, version):
        return True
    is_known = version <= max((one.after for one in of_key(exceptions, key)), default=b"")  # each `after` was held
    return timestamp_of(version) > through.get(store_id_of(version), 0) and not is_known


def union(one: dict[bytes, int], two: dict[bytes, int]) -> dict[bytes, int]:
    return {store_id: max(one.get(store_id, 0), two.get(store_id, 0)) for store_id in one.keys() | two.keys()}


@given(EXCEPTIONS, THROUGH, EXCEPTIONS, THROUGH)
def test_exceptions_unite_in_any_order(
    one: Exceptions, one_through: dict[bytes, int], two: Exceptions, two_through: dict[bytes, int]
) -> None:
    united = unite(one, one_through, two, two_through)
    assert united == unite(two, two_through, one, one_through)
    assert unite(one, one_through, one, one_through) == one
    for key in (b"k", b"l", b"m"):
        for version in VERSIONS:
            is_lacking = lacks(one, one_through, key, version) and lacks(two, two_through, key, version)
            assert not is_lacking or lacks(united, union(one_through, two_through), key, version)


@given(EXCEPTIONS, EXCEPTIONS)
def test_exceptions_end_at_a_node_that_has_applied_them(one: Exceptions, two: Exceptions) -> None:
    through = {b"oslo....": 9}
    united = unite(one, through, two, through)
    for key in (b"k", b"l", b"m"):
        lacking = [is_excepted(one, key, version) and is_excepted(two, key, version) for version in VERSIONS]
        found = [is_excepted(united, key, version) for version in VERSIONS]
        if len(of_key(one, key)) <= 1 >= len(of_key(two, key)):
            assert found == lacking
        else:  # what lies between two parts of a reason may pass for lacking
            assert all(is_found >= is_lacking for is_found, is_lacking in zip(found, lacking, strict=True))
    assert unite(one, through, {}, through) == {}
