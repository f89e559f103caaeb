"""Exchanges that are cut, damaged, repeated, refused or overtaken: what was merged stays, nothing else changes, and the
next exchange does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.exchanges import SECOND, Cut, Node, agree, answer, carry, cluster, exchange

from merklekv.engine.log import writer
from merklekv.engine.time_gate import DEFAULT_MAX_DRIFT_S
from merklekv.errors import DiskFull
from merklekv.replication.cluster import members as members_module
from merklekv.replication.cluster.refused import decode_refused
from merklekv.replication.plain_cbor import Fields, Malformed
from merklekv.replication.sync.initiator import PASSES_MAX
from merklekv.replication.sync.messages import (
    EXCHANGE_VERSION,
    MESSAGE_ROOM_BYTES,
    ExchangeFailed,
    ExchangeRefused,
    decode,
    encode,
)

DELETED = 600  # more than are merged in one call


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    with cluster(tmp_path, "ab") as made:
        yield made


def differ(a: Node, b: Node, count: int = 60) -> None:
    """Give each node records that the other lacks, has in an older version, or has deleted."""
    for node in (a, b):
        name = node.name.encode()
        for number in range(count):
            node.engine.set(b"both:%d" % number, name)
            node.engine.set(b"%b:%d" % (name, number), b"v" * 40)
        node.engine.delete(b"%b:0" % name)
        node.engine.set(b"%b:large" % name, b"v" * 3000)
        node.tick()
        node.engine.commit()


def state(node: Node) -> tuple[object, ...]:
    return (
        node.records(),
        node.engine.truncation,
        node.engine.gc_horizon,
        node.members.table(),
        dict(node.engine.metadata),
    )


def rounds_of(a: Node, b: Node) -> int:
    return exchange(a, b).rounds


@pytest.mark.parametrize("where", ["request", "answer"])
@pytest.mark.parametrize("restart", [False, True])
def test_cut_at_every_message(tmp_path: Path, where: str, restart: bool) -> None:
    with cluster(tmp_path / "whole", "ab") as (a, b):
        differ(a, b)
        rounds = rounds_of(a, b)
    assert rounds >= 4
    for place in range(rounds):
        with cluster(tmp_path / str(place), "ab") as (a, b):
            differ(a, b)

            def cut(number: int, message: bytes, place: int = place) -> bytes:
                if number == place:
                    raise Cut
                return message

            with pytest.raises(Cut):
                carry(a.initiate().steps(), b, **{"before" if where == "request" else "after": cut})
            if where == "request" or place < rounds - 1:
                assert b.members.applied_through(a.members.identity) == 0  # it was not whole
            if restart:
                a.reopen()
                b.reopen()
            exchange(b, a)
            assert agree(a, b)
            assert len(a.values()) == 60 * 3 - 2 + 2


@pytest.mark.parametrize("message", ["hello", "inner", "buckets", "transfer", "scan", "done"])
def test_every_damaged_byte_is_noticed(nodes: list[Node], message: str) -> None:
    """A request that was damaged or cut anywhere is refused, and nothing has changed."""
    a, b = nodes
    differ(a, b, 3)
    if message == "scan":
        a.empty()
    requests: dict[str, bytes] = {}

    def keep(_: int, request: bytes) -> bytes:
        kind = decode(request, 1 << 20)[0]
        requests[kind] = request
        if kind == message:
            raise Cut
        return request

    with pytest.raises(Cut):
        carry(a.initiate().steps(), b, before=keep)
    request, before = requests[message], state(b)
    size = len(request)
    places = range(size) if size < 1500 else range(0, size, 37)
    for at in places:
        flipped = request[:at] + bytes([request[at] ^ (1 << at % 8)]) + request[at + 1 :]
        for broken in (flipped, request[:at], request[:at] + request[at + 1 :]):
            kind, fields = decode(answer(b, broken), 1 << 20)
            assert kind == "refused"
            assert fields.text("why", 20) == "damaged" or at == 3  # where the version is
    assert state(b) == before
    assert decode(answer(b, request), 1 << 20)[0] == message


def test_every_damaged_answer_is_noticed(nodes: list[Node]) -> None:
    a, b = nodes
    differ(a, b, 3)
    for number in range(4):  # hello, inner, buckets, done
        for at in range(0, 200, 7):

            def damage(count: int, reply: bytes, number: int = number, at: int = at) -> bytes:
                if count != number:
                    return reply
                place = at % len(reply)
                return reply[:place] + bytes([reply[place] ^ 1]) + reply[place + 1 :]

            b.set(b"more:%d:%d" % (number, at))
            try:
                carry(a.initiate().steps(), b, after=damage)
            except (ExchangeFailed, ExchangeRefused) as problem:
                assert any(word in str(problem) for word in ("damaged", "no message", "version"))  # noqa: PT017
            else:
                raise AssertionError("a damaged answer was believed")
    exchange(a, b)
    assert agree(a, b)


def test_every_request_may_come_twice(nodes: list[Node]) -> None:
    a, b = nodes
    differ(a, b)

    def twice(_: int, request: bytes) -> bytes:
        answer(b, request)
        return request

    carry(a.initiate().steps(), b, before=twice)
    assert agree(a, b)
    assert exchange(a, b).equal


def test_two_exchanges_may_cross(nodes: list[Node]) -> None:
    a, b = nodes
    differ(a, b)
    there, back = a.initiate().steps(), b.initiate().steps()
    asked, asked_back = next(there), next(back)
    ended = 0
    while ended < 2:
        for steps, other, mine in ((there, b, asked), (back, a, asked_back)):
            if mine:
                reply = answer(other, mine)
                try:
                    request = steps.send(reply)
                except StopIteration:
                    request = b""
                    ended += 1
                if steps is there:
                    asked = request
                else:
                    asked_back = request
    assert agree(a, b)


@pytest.mark.parametrize("place", range(1, 5))
def test_a_node_that_was_restarted_says_so_and_it_begins_anew(nodes: list[Node], place: int) -> None:
    a, b = nodes
    differ(a, b)
    done = False

    def restart(number: int, request: bytes) -> bytes:
        nonlocal done
        if number == place and not done:
            b.reopen()
            done = True
        return request

    report = carry(a.initiate().steps(), b, before=restart)
    assert agree(a, b)
    assert report.rounds > place + 1
    assert b.members.applied_through(a.members.identity) > 0


@pytest.mark.parametrize("whose", ["this", "that"])
def test_a_horizon_that_moves_begins_it_anew(nodes: list[Node], whose: str) -> None:
    a, b = nodes
    differ(a, b)
    moved = 0

    def move(number: int, reply: bytes) -> bytes:
        nonlocal moved
        if number in (1, 3):
            moved += 1
            (a if whose == "this" else b).engine.raise_gc_horizon(SECOND * moved)
        return reply

    carry(a.initiate().steps(), b, after=move)
    assert moved == 2
    assert agree(a, b)


def test_a_horizon_that_moves_for_ever_ends_it(nodes: list[Node]) -> None:
    a, b = nodes
    differ(a, b)
    moved = 0

    def move(_: int, reply: bytes) -> bytes:
        nonlocal moved
        moved += 1
        b.engine.raise_gc_horizon(SECOND * moved)
        b.members.record_horizon(SECOND * moved)
        return reply

    with pytest.raises(ExchangeFailed, match=f"node b: the data of both moved during {PASSES_MAX} attempts"):
        carry(a.initiate().steps(), b, after=move)


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(first: Node, second: Node) -> ExchangeRefused:
    with pytest.raises(ExchangeRefused) as caught:
        exchange(first, second)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_another_cluster(nodes: list[Node]) -> None:
    a, _ = nodes
    with cluster(a.path.parent / "other", "c", cluster="other") as (c,):
        before = state(a), state(c)
        for first, second in ((a, c), (c, a)):
            problem = refused(first, second)
            assert problem.why == "cluster"
            assert "nodes of one cluster have the same replication.topic_prefix" in str(problem)
        assert (before[0][0], before[1][0]) == (a.records(), c.records())
        assert len(a.members) == len(c.members) == 1


def test_itself_a_copy_and_another_node_of_the_same_id(nodes: list[Node]) -> None:
    a, _ = nodes
    assert "node a has reached itself" in str(refused(a, a))
    with cluster(a.path.parent / "other", "a") as (other,):
        problem = refused(a, other)
        assert problem.why == "self"
        assert "two nodes have the id a: give each its own replication.client_id" in str(problem)
        other.members.identity = a.members.identity
        other.tick()
        problem = refused(a, other)
        assert problem.why == "self"
        assert "exchange with itself or with a copy of its data directory" in str(problem)


@pytest.mark.parametrize("fast", ["first", "second"])
def test_a_clock_that_is_far_ahead(nodes: list[Node], fast: str) -> None:
    a, b = nodes
    (a if fast == "first" else b).tick(DEFAULT_MAX_DRIFT_S + 1)
    problem = refused(a, b)
    assert problem.why == "clock"
    assert f"node {'a' if fast == 'first' else 'b'}'s clock is ahead" in str(problem)
    (b if fast == "first" else a).tick(1)
    exchange(a, b)


@pytest.mark.parametrize("other", [EXCHANGE_VERSION - 1, EXCHANGE_VERSION + 1])
def test_another_release(nodes: list[Node], other: int) -> None:
    a, b = nodes
    request = next(a.initiate().steps())
    foreign = request[:3] + bytes([other]) + b"whatever it looks like by then"
    kind, fields = decode(answer(b, foreign), 1 << 20)
    assert (kind, fields.text("why", 20)) == ("refused", "format")
    assert "run the same release of MerkleKV on both" in fields.text("text", 1000)
    words = f"one node speaks version {other} of the exchange, the other version {EXCHANGE_VERSION}"
    with pytest.raises(ExchangeRefused, match=words):
        carry(a.initiate().steps(), b, after=lambda _, reply: foreign)


def test_too_many_members(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "MEMBERS_MAX", 1)
    assert "more than 1 members: forget those that are gone" in str(refused(*nodes))


def test_a_full_disk(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = nodes
    a.set(b"k")

    def full(*_: object, **__: object) -> None:
        raise DiskFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(b.engine, "merge", full)
        problem = refused(a, b)
        assert (problem.why, str(problem)) == ("full", "the disk is full")
        with pytest.raises(DiskFull):
            exchange(b, a)
    exchange(a, b)
    assert agree(a, b)


def test_deletions_pass_records_that_find_no_room(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was deleted elsewhere makes room on a full disk, wherever the records are that have none."""
    a, b = nodes
    for number in range(DELETED):
        a.set(b"old:%d" % number)
    exchange(a, b)
    for number in range(DELETED):
        b.delete(b"old:%d" % number)
        b.set(b"new:%d" % number, b"v" * (3000 if number % 2 else 3))
    expected = b.values()
    monkeypatch.setattr(writer, "RESERVE_STEP", 0)
    a.reopen()
    a.engine.log.admits = lambda end_lsn, growth, urgent: urgent
    with pytest.raises(DiskFull):
        exchange(a, b)
    assert a.values() == {}
    assert b.values() == expected
    a.reopen()
    exchange(a, b)
    assert a.values() == expected
    assert agree(a, b)


@pytest.mark.parametrize("key", [b"", b"k" * 512, b"k" * 70_000])
def test_keys_of_sizes_that_are_none(nodes: list[Node], key: bytes) -> None:
    a, b = nodes
    exchange(a, b)
    fields: dict[str, object] = {
        "to": b.engine.clock.writer,
        "gc_horizon": b.engine.gc_horizon,
        "new_gc_horizon": b.members.stable() + 1,
        "origin": "a",
        "max_value_size": 1000,
        "wants": [],
        "records": [],
        "stale": [],
    }

    def transfer(**some: list[bytes]) -> Fields:
        return decode(answer(b, encode("transfer", **fields | some)), 1 << 20)[1]

    tombstone = (1).to_bytes(8, "big") + bytes(16) + b"\1" + bytes(16)
    (one,) = decode_refused(transfer(records=[key, tombstone]), "refused")
    assert (one.key, one.reason, one.node) == (key[:511], "digest", "b")
    assert transfer(stale=[key, bytes(24)]).text("why", 20) == "damaged"
    assert transfer(wants=[key]).pairs("records") == []


def test_a_message_at_the_largest_size_and_one_past_it() -> None:
    message = encode("done", filler=bytes(1000))
    assert decode(message, len(message))[0] == "done"
    with pytest.raises(Malformed, match=f"a message of {len(message)} bytes, more than {len(message) - 1}"):
        decode(message, len(message) - 1)
    assert MESSAGE_ROOM_BYTES > 0
