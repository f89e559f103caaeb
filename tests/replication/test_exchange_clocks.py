"""Times in messages, and times of a wall clock that was wrong: none stops a clock for good."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cbor2
import pytest
from fixtures.exchanges import NOON, SECOND, Cut, Node, agree, answer, carry, cluster, exchange, meet_all

from merklekv.engine.record import timestamp_of
from merklekv.engine.time_gate import MAX_TRUNCATION_AHEAD_S, UNSET_BEFORE_NS
from merklekv.log_throttle import LogThrottle
from merklekv.replication.cluster.lost_writes import LostWriteInterval
from merklekv.replication.cluster.members import (
    NO_REPORT,
    Identity,
    MemberRow,
    Members,
    MemberTable,
    SelfReport,
    decode_table,
)
from merklekv.replication.cluster.storage import METADATA_MEMBERS, store_members
from merklekv.replication.plain_cbor import Malformed, decode_map
from merklekv.replication.sync import local_endpoint
from merklekv.replication.sync.messages import ExchangeFailed, ExchangeRefused, Hello, decode, encode, pack, unpack

YEAR = 365 * 86_400 * SECOND
DRIFT_S = 600
DRIFT = DRIFT_S * SECOND
EVIL = Identity("evil", b"evilevil")
FAR = {"past the bound": DRIFT + 60 * SECOND, "ten years": 10 * YEAR, "the largest": (1 << 63) - 1 - NOON}
TIMES = [0, 1, NOON + DRIFT - SECOND, *(NOON + far for far in FAR.values()), 1 << 63, -1]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    with cluster(tmp_path, "abc", max_clock_drift_s=DRIFT_S) as made:
        yield made


def stamped(node: Node, key: bytes) -> int:
    """The timestamp of what is stored under a key."""
    record = node.engine.record(key)
    assert record is not None
    return timestamp_of(record)


def times_in(table: MemberTable) -> int:
    """The largest time in a table."""
    return max(max(table.own_times()), max(table.beyond(-1).values(), default=0))


def assert_unmoved(node: Node) -> None:
    """Nothing that the node keeps is later than its wall clock and the drift, and it can start again."""
    latest = node.now + DRIFT
    members = node.members
    assert node.engine.clock.lower_bound <= latest
    assert max(members.closed, members.proposed) <= latest
    assert node.engine.gc_horizon <= latest
    assert timestamp_of(node.engine.truncation) <= node.now + MAX_TRUNCATION_AHEAD_S * SECOND
    assert times_in(members.table()) <= latest
    assert Members.restore(members.encode(), node.name).encode() == members.encode()
    node.reopen()
    assert node.engine.clock.lower_bound <= node.now + DRIFT


def forged(node: Node, told: MemberRow) -> bytes:
    """A hello of a stranger that says this of a node."""
    table = MemberTable(EVIL, SelfReport(0, 0, b"x" * 8), {node.members.identity: told})
    return encode("hello", hello=Hello("test", b"epoc", bytes(24), 0, b"", 1, 1000, table).plain())


@pytest.mark.parametrize("far", FAR.values(), ids=list(FAR))
def test_a_stranger_that_has_applied_the_future_moves_no_clock(
    nodes: list[Node], far: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = nodes
    monkeypatch.setattr(local_endpoint, "_throttle", LogThrottle(local_endpoint.log))
    exchange(a, b)
    before = a.members.encode(), a.engine.clock.lower_bound
    kind, fields = decode(answer(a, forged(a, MemberRow(NOON + far, 0, NO_REPORT))), 1 << 20)
    assert (kind, fields.text("why", 20)) == ("refused", "clock")
    says = fields.text("text", 1000)
    assert says.startswith("what it says to have of node a in the table of node evil is of 2")
    assert "ahead of the wall clock of node a" in says
    assert f"refused an exchange: {says}" in caplog.text
    assert (a.members.encode(), a.engine.clock.lower_bound) == before
    assert a.members.rows_refused == 1
    assert_unmoved(a)
    a.set(b"after")
    assert stamped(a, b"after") < a.now + SECOND
    exchange(a, b)
    assert b.values() == {b"after": b"value"}


LogPosition = tuple[Any, ...]


def numbers_in(item: Any, path: LogPosition = ()) -> Iterator[LogPosition]:
    """Where numbers are in a message."""
    pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for at, inner in pairs:
        if type(inner) is int:
            yield (*path, at)
        else:
            yield from numbers_in(inner, (*path, at))


def replaced(item: Any, path: LogPosition, number: int) -> Any:
    changed = copy.deepcopy(item)
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = number
    return changed


def plain_of(message: bytes, known: MemberTable | None = None) -> dict[str, Any]:
    """The map of a message, with its tables unpacked."""
    plain: dict[str, Any] = cbor2.loads(message[4:-8])
    for holder in (plain, plain.get("hello", {})):
        if "table" in holder:
            holder["table"] = unpack(holder["table"], known).plain()
    return plain


def message_of(plain: dict[str, Any], known: MemberTable | None = None) -> bytes:
    """The inverse, whatever the numbers in it are."""
    plain = copy.deepcopy(plain)
    for holder in (plain, plain.get("hello", {})):
        if "table" in holder:
            holder["table"] = packed(holder["table"], known)
    return encode(plain.pop("do"), **plain)


def packed(plain: dict[str, Any], known: MemberTable | None) -> bytes:
    class Told(MemberTable):
        def plain(self) -> dict[str, object]:
            return plain

    return pack(Told(EVIL, NO_REPORT), known)


def know_much(nodes: list[Node]) -> None:
    """Brings something into every map of their tables."""
    _, b, c = nodes
    for node in nodes:
        node.set(b"of " + node.name.encode())
    meet_all(nodes)
    gone = Identity("gone", b"gonegone")
    for node in nodes:
        node.members.record_contact("other", b"otherone")
        node.members.record_contact(*gone)
        node.members.remove("gone")
    b.members.lost_writes[Identity("other", b"otherone")] = frozenset({LostWriteInterval(1, 2, b"run1", 1)})
    for node in nodes:
        node.members.record_redelete(node.now)
    b.set(b"only b has this")
    c.set(b"only c has this")


@pytest.mark.parametrize("kind", ["hello", "transfer", "done"])
def test_no_number_in_a_request_moves_what_is_kept(nodes: list[Node], kind: str) -> None:
    a, b, c = nodes
    know_much(nodes)
    asked = 0

    def fuzz(_: int, request: bytes) -> bytes:
        nonlocal asked
        plain = plain_of(request)
        if plain["do"] != kind:
            return request
        asked += 1
        for path in numbers_in(plain):
            for number in TIMES:
                message = message_of(replaced(plain, path, number))
                assert decode(answer(a, message), 1 << 24)[0] in ("refused", "outdated", kind)
            assert_unmoved_in_life(a)
        return request

    carry(b.initiate().steps(), a, before=fuzz)
    assert asked >= 1
    assert_unmoved(a)
    lives_on(a, b, c)


def assert_unmoved_in_life(node: Node) -> None:
    latest = node.now + DRIFT
    assert node.engine.clock.lower_bound <= latest
    assert max(node.members.closed, node.engine.gc_horizon, times_in(node.members.table())) <= latest


@pytest.mark.parametrize("kind", ["hello", "done"])
def test_no_number_in_an_answer_moves_what_is_kept(nodes: list[Node], kind: str) -> None:
    a, b, c = nodes
    know_much(nodes)
    known: list[MemberTable] = []

    def keep(_: int, request: bytes) -> bytes:
        plain = plain_of(request)
        holder = plain.get("hello", plain)
        if "table" in holder:
            known[:] = [decode_table(decode_map(cbor2.dumps(holder["table"])))]
        return request

    paths: list[LogPosition] = []

    def look(_: int, reply: bytes) -> bytes:
        if decode(reply, 1 << 24)[0] == kind:
            paths[:] = numbers_in(plain_of(reply, known[0]))
        return reply

    carry(a.initiate().steps(), b, before=keep, after=look)
    assert len(paths) > 10
    for path in paths:
        for number in TIMES:

            def lie(_: int, reply: bytes, path: LogPosition = path, number: int = number) -> bytes:
                if decode(reply, 1 << 24)[0] != kind:
                    return reply
                try:
                    return message_of(replaced(plain_of(reply, known[0]), path, number), known[0])
                except (KeyError, IndexError):  # the table has changed since
                    return reply

            b.set(b"something new")
            with suppress(ExchangeRefused, ExchangeFailed, Malformed):
                carry(a.initiate().steps(), b, before=keep, after=lie)
            a.now = max(a.now, b.now - DRIFT // 2)
            assert_unmoved_in_life(a)
    assert_unmoved(a)
    lives_on(a, b, c)


def lives_on(a: Node, b: Node, c: Node) -> None:
    """After all that, nodes that tell the truth take what the node writes."""
    for node in (a, b, c):
        node.now = max(a.now, b.now, c.now) + 60 * SECOND
        node.members.record_contact("other", b"otherone")
    a.set(b"after")
    assert stamped(a, b"after") <= a.now + DRIFT
    exchange(c, a)
    exchange(a, b)
    assert c.values()[b"after"] == b.values()[b"after"] == b"value"


def test_a_time_of_another_member_is_left_out_and_logged(
    nodes: list[Node], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = nodes
    monkeypatch.setattr(local_endpoint, "_throttle", LogThrottle(local_endpoint.log))
    meet_all(nodes)
    b.members._others[c.members.identity].applied_through = a.now + 2 * DRIFT
    before = a.members.applied_through(c.members.identity)
    b.set(b"k")
    with caplog.at_level(logging.WARNING):
        exchange(b, a)
    assert a.values() == {b"k": b"value"}
    assert a.members.applied_through(c.members.identity) == before
    assert a.members.rows_refused >= 1
    assert "what node b tells of node c, store id " in caplog.text
    assert "is left out: it is of 2033-05-18 " in caplog.text
    exchange(c, a)
    assert agree(a, c)


def test_a_truncation_is_bound_to_a_minute(nodes: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    a, b, _ = nodes
    a.set(b"kept")
    b.tick(MAX_TRUNCATION_AHEAD_S + 2)
    b.engine.truncate()
    b.set(b"later")
    for one, other in ((a, b), (b, a)):  # all but the truncation goes on
        exchange(one, other)
        assert a.values() == {b"kept": b"value", b"later": b"value"}
        assert b.values() == {b"later": b"value"}
    assert "the truncation of node b is of 2033-05-18" in caplog.text
    assert a.members.rows_refused >= 2
    a.tick(2)
    exchange(a, b)
    assert agree(a, b)
    assert a.values() == {b"later": b"value"}


# -- a wall clock that was wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [10 * YEAR, 2 * 86_400 * SECOND])
def test_a_start_with_a_wrong_date_leaves_nothing_behind(nodes: list[Node], off: int) -> None:
    a, b, _ = nodes
    a.set(b"before")
    exchange(a, b)
    promised = a.members.closed
    a.now += off
    a.reopen()
    a.reopen()
    with pytest.raises(ExchangeRefused, match="node a's clock is ahead of node b's by"):
        exchange(a, b)
    with pytest.raises(ExchangeRefused, match="node a's clock is ahead of node b's by"):
        exchange(b, a)
    assert (a.members.closed, a.members.proposed) == (promised, 0)
    a.now -= off - 5 * SECOND
    a.reopen()
    a.set(b"after")
    assert stamped(a, b"after") == a.now
    exchange(b, a)
    assert agree(a, b)
    meet_all(nodes)
    assert a.engine.gc_horizon > 0


@pytest.mark.parametrize("ends", ["refused", "cut", "unanswered"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_jump_of_the_clock_while_it_runs_leaves_nothing_behind(nodes: list[Node], ends: str, restart: bool) -> None:
    a, b, _ = nodes
    a.set(b"before")
    exchange(a, b)
    promised = a.members.closed
    off = 2 * 86_400 * SECOND
    a.now += off

    def cut(_: int, message: bytes) -> bytes:
        raise Cut

    if ends == "refused":
        with pytest.raises(ExchangeRefused, match="node a's clock is ahead"):
            exchange(a, b)
    else:
        with pytest.raises(Cut):
            carry(a.initiate().steps(), b, **{"before" if ends == "cut" else "after": cut})
    assert a.members.closed == promised
    a.now -= off - SECOND
    if restart:
        a.reopen()
    elif ends != "refused":  # another node may have accepted it: the next answer tells
        with pytest.raises(ExchangeRefused):
            exchange(a, b)
    a.set(b"after")
    assert stamped(a, b"after") == a.now
    exchange(a, b)
    assert agree(a, b)


def test_a_closed_timestamp_is_durable_once_it_is_accepted(nodes: list[Node]) -> None:
    a, b, _ = nodes
    a.tick(5)
    assert kept(a).closed == 0

    def look(number: int, request: bytes) -> bytes:
        if number == 0:
            assert (kept(a).closed, kept(a).proposed) == (0, a.now)
        return request

    a.engine.set(b"k", b"v")
    carry(a.initiate().steps(), b, before=look)
    assert (kept(a).closed, kept(a).proposed) == (a.members.closed, 0)
    assert a.members.closed >= a.now
    assert b.members.applied_through(a.members.identity) == a.members.closed


def kept(node: Node) -> Members:
    """The members as the log has them."""
    return Members.restore(node.engine.metadata[METADATA_MEMBERS], node.name)


def test_what_was_accepted_holds_although_the_answer_was_lost(nodes: list[Node]) -> None:
    """Equal nodes remember each other at the first message."""
    a, b, _ = nodes
    a.set(b"k")
    exchange(a, b)
    a.now += DRIFT // 2

    def lose(_: int, reply: bytes) -> bytes:
        raise Cut

    b.now = a.now
    with pytest.raises(Cut):
        carry(a.initiate().steps(), b, after=lose)
    closed = b.members.applied_through(a.members.identity)
    assert closed == a.members.proposed == a.now
    a.now -= DRIFT // 2
    for _ in range(2):
        a.set(b"later")
        assert stamped(a, b"later") > closed
        a.reopen()
    exchange(a, b)
    assert a.members.closed >= closed
    assert not a.members.proposed
    assert agree(a, b)


def test_records_from_the_future_are_told_at_a_start(nodes: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    a, b, _ = nodes
    a.now += YEAR
    a.set(b"poisoned")
    a.now -= YEAR
    with caplog.at_level(logging.WARNING):
        a.reopen()
    assert "node a has versions up to 2034-05-18" in caplog.text
    assert "31536000 s ahead of its wall clock" in caplog.text
    a.set(b"fresh")
    assert stamped(a, b"fresh") == a.now
    (refused,) = exchange(a, b).refused
    assert str(refused).startswith("key b'poisoned': its version is of 2034-05-18")
    assert b.values() == {b"fresh": b"value"}


def test_a_node_whose_clock_was_never_set_exchanges_once_it_is(tmp_path: Path) -> None:
    with cluster(tmp_path, "ab", max_clock_drift_s=DRIFT_S) as (a, b):
        b.set(b"theirs")
        a.now = UNSET_BEFORE_NS // 2
        a.reopen()
        a.set(b"k")
        before = a.members.encode()
        kind, fields = decode(answer(a, forged(a, MemberRow((1 << 63) - 1, 0, NO_REPORT))), 1 << 20)
        assert (kind, fields.text("why", 20)) == ("refused", "unfit")
        for one, other in ((a, b), (b, a)):
            with pytest.raises(
                ExchangeRefused,
                match=r"^the wall clock of node a was never set, so the node takes events, but does not",
            ):
                exchange(one, other)
        assert a.members.encode() == before
        a.now = b.now
        exchange(b, a)
        assert agree(a, b)
        a.set(b"set")
        assert stamped(a, b"set") == a.now
        exchange(a, b)
        assert agree(a, b)


def test_a_member_whose_clock_is_lost_is_whole_again_once_it_is_set(nodes: list[Node]) -> None:
    a, b, c = nodes
    a.set(b"k")
    meet_all(nodes)
    right = a.now
    a.now = UNSET_BEFORE_NS // 2
    a.reopen()
    before = a.members.closed, a.engine.gc_horizon, a.engine.truncation
    a.set(b"event")
    assert stamped(a, b"event") > a.members.closed, "what others rely on holds"
    b.take_event(b"event", a.records()[b"event"], "a")
    assert b.values()[b"event"] == b"value", "others take its events"
    b.set(b"of b")
    a.take_event(b"of b", b.records()[b"of b"], "b")
    assert a.values()[b"of b"] == b"value", "and it takes theirs"
    assert not a.engine.merge_truncation(b.engine.clock.next(), b"b")
    a.engine.truncate()
    assert a.values() == {}
    a.set(b"after")
    assert (a.members.closed, a.engine.gc_horizon) == before[:2]
    a.now = right
    meet_all(nodes)
    meet_all(nodes)
    assert agree(*nodes)
    assert a.values() == b.values() == c.values() == {b"after": b"value"}
    assert not any(node.engine.tombstone_count for node in nodes)


def test_a_start_with_a_slow_clock_gives_its_advice_once(nodes: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    a, _, _ = nodes
    meet_all(nodes)
    meet_all(nodes)
    a.now -= YEAR
    with caplog.at_level(logging.WARNING):
        a.reopen()
    (line,) = caplog.messages
    assert line.startswith("node a stamps its writes after")
    assert a.members.rows_refused == 2


def test_a_stored_row_from_the_future_is_told_at_a_start(nodes: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    a, b, c = nodes
    meet_all(nodes)
    who = c.members.identity
    a.members._others[who].applied_through = a.now + YEAR
    store_members(a.engine, a.members)
    with caplog.at_level(logging.WARNING):
        a.reopen()
    store_id = who.store_id.hex()
    assert "node a: its table of members has times ahead of its wall clock in 1 row, up to 2034-05-18" in caplog.text
    assert f"in that of node c, store id {store_id}, and other nodes leave them out: set the clock if" in caplog.text
    assert caplog.text.count("merklekv restamp") == 1
    assert a.members.rows_refused == 1
    a.set(b"k")
    exchange(a, b)
    assert agree(a, b)
    assert times_in(b.members.table()) <= b.now + DRIFT
