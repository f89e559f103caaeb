"""Keys that expire, on nodes whose clocks differ: by events, and by exchanges in each of their ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.exchanges import SECOND, Node, agree, cluster, exchange, is_dead, meet_all
from xxhash import xxh3_128_digest

from merklekv.engine.format import OP_SET
from merklekv.engine.record import EXPIRY, PURGED, TOMBSTONE, expiry_of, make_record, pack_expiry, version_of
from merklekv.engine.tombstone_gc import EXPIRY_GRACE_NS
from merklekv.replication.sync.local_endpoint import LocalEndpoint

MS = 10**6  # ns
LIMIT = 1000  # bytes, `max_value_size`


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    with cluster(tmp_path, max_value_size=LIMIT) as made:
        yield made


def expires_in(node: Node, key: bytes, seconds: float, value: bytes = b"value") -> int:
    """Sets a key that expires; its expiry."""
    node.tick()
    expiry = (node.now + int(seconds * SECOND)) // MS
    node.engine.set(key, value, expiry)
    node.engine.commit()
    return expiry


@pytest.mark.parametrize("filled", ["few", "a", "b"])
def test_the_largest_values_with_an_expiry_are_exchanged(nodes: list[Node], filled: str) -> None:
    """Record by record, and page by page in both directions."""
    a, b, _ = nodes
    large = [b"large %d" % number for number in range(20)]
    for key in large:
        expires_in(a, key, 1000, b"v" * LIMIT)
    for number in range(500 if filled != "few" else 50):
        (b if filled == "b" else a).engine.set(b"%d" % number, b"v")
        if filled == "few":
            b.engine.merge([(1, b"%d" % number, a.engine.record(b"%d" % number) or b"")], b"a")
    a.engine.commit()
    b.engine.commit()
    assert not exchange(*(a, b) if filled != "b" else (b, a)).refused
    assert agree(a, b)
    assert [b.engine.get(key) for key in large] == [b"v" * LIMIT] * len(large)


def test_each_node_hides_a_key_when_its_own_clock_says_so(nodes: list[Node]) -> None:
    a, b, c = nodes
    expiry = expires_in(a, b"k", 100)
    meet_all(nodes)
    assert [expiry_of(node.records()[b"k"]) for node in nodes] == [expiry] * 3
    root = a.engine.root()
    a.now, b.now, c.now = expiry * MS, expiry * MS - 1, expiry * MS + 60 * SECOND
    assert [node.engine.get(b"k") for node in nodes] == [None, b"value", None]
    c.now = expiry * MS - 1
    assert c.engine.get(b"k") == b"value"
    assert agree(*nodes)
    assert a.engine.root() == root


# -- below the GC horizon ----------------------------------------------------------------------------------------------


def pass_by(nodes: list[Node], expiry: int) -> None:
    """The GC horizon of the nodes goes so far beyond an expiry that a record with it is as good as a tombstone."""
    for node in nodes:
        node.now = max(node.now, expiry * MS) + EXPIRY_GRACE_NS + SECOND
    meet_all(nodes)
    for node in nodes:
        assert node.engine.gc_horizon > expiry * MS + EXPIRY_GRACE_NS


def given(from_: Node, to: Node, key: bytes, record: bytes) -> list[bytes]:
    """A node gives another one record, as in an exchange; the keys that are refused."""
    endpoint = LocalEndpoint(to.engine, to.members, "test")
    horizon = to.engine.gc_horizon
    _, refused = endpoint.merge([(key, record)], from_.name.encode(), horizon, horizon)
    to.engine.commit()
    return [one.key for one in refused]


def test_what_has_expired_goes_when_the_horizon_is_long_past_it_and_not_before(nodes: list[Node]) -> None:
    """And nothing tells the others of it: their clocks and horizons do."""
    a, b, c = nodes
    a.set(b"k", b"before")
    meet_all(nodes)
    expiry = expires_in(a, b"k", 100)
    for node in nodes:
        node.now = expiry * MS + EXPIRY_GRACE_NS - 60 * SECOND
    meet_all([a, b])
    assert [b"k" in node.records() for node in nodes] == [True] * 3  # c has not met them
    assert c.engine.get(b"k") == b"before"
    meet_all(nodes, 1)
    assert [node.engine.get(b"k") for node in nodes] == [None] * 3
    assert [expiry_of(node.records()[b"k"]) for node in nodes] == [expiry] * 3
    pass_by(nodes, expiry)
    assert [node.records() for node in nodes] == [{}] * 3
    assert agree(*nodes)


def test_a_node_that_was_away_brings_nothing_back_that_has_expired(nodes: list[Node]) -> None:
    a, _, c = nodes
    a.set(b"k", b"before")
    meet_all(nodes)
    copy = c.backup()
    expiry = expires_in(a, b"k", 100)
    pass_by(nodes, expiry)
    c.restore(copy)
    c.now = a.now
    assert c.engine.get(b"k") == b"before"
    exchange(c, a)
    meet_all(nodes)
    assert [node.engine.get(b"k") for node in nodes] == [None] * 3
    assert agree(*nodes)


def test_what_has_expired_long_before_the_horizon_is_not_stored_again(nodes: list[Node]) -> None:
    a, b, _ = nodes
    expiry = expires_in(a, b"k", 100)
    record = a.records()[b"k"]
    a.engine.delete(b"k")
    meet_all(nodes)
    pass_by(nodes, expiry)
    assert given(b, a, b"k", record) == []
    a.take_event(b"k", record)
    assert a.records() == {}
    assert agree(*nodes)


def test_what_has_expired_long_before_the_horizon_deletes_what_it_has_replaced(nodes: list[Node]) -> None:
    """A node that was restored without it must not show the value from before."""
    a, _, c = nodes
    a.set(b"k", b"before")
    meet_all(nodes)
    older = c.records()[b"k"]
    expiry = expires_in(a, b"k", 100)
    record = a.records()[b"k"]
    pass_by(nodes, expiry)
    c.engine.merge([(OP_SET, b"k", older)], b"a", stable=True)
    assert c.engine.get(b"k") == b"before"
    assert given(a, c, b"k", record) == []
    assert c.engine.get(b"k") is None
    assert is_dead(c.records()[b"k"])


def test_what_replaces_a_record_that_has_expired_long_ago_stands(nodes: list[Node]) -> None:
    a, b, _ = nodes
    expiry = expires_in(a, b"k", 100)
    record = a.records()[b"k"]
    pass_by(nodes, expiry)
    b.set(b"k", b"later")
    assert given(a, b, b"k", record) == []
    assert b.engine.get(b"k") == b"later"
    meet_all(nodes)
    assert [node.engine.get(b"k") for node in nodes] == [b"later"] * 3


@pytest.mark.parametrize("flags", [TOMBSTONE | EXPIRY, EXPIRY | PURGED, EXPIRY | 8])
def test_only_a_sound_record_passes_for_expired(nodes: list[Node], flags: int) -> None:
    a, b, _ = nodes
    a.set(b"k", b"v")
    expiry = expires_in(a, b"other", 100)
    version = version_of(a.records()[b"other"])
    pass_by(nodes, expiry)
    head = version + bytes((flags,))
    body = pack_expiry(expiry)
    forged = head + xxh3_128_digest(b"\0\1k" + head + body) + body
    assert given(b, a, b"k", forged) == [b"k"]
    forged = make_record(b"k", version, b"", expiry=0)
    assert given(b, a, b"k", forged) == [b"k"]
    assert a.engine.get(b"k") == b"v"
