"""RECORDS, TRUNCATION, MERGE, MERGETRUNCATION: records travel as they are stored, whole and in order."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.engines import LATER_MS
from fixtures.servers import Start, StartedServer
from fixtures.support import wait_until
from fixtures.wire import Wire

from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS, MAX_KEY_SIZE, bucket_of
from merklekv.engine.record import (
    HEAD_SIZE,
    TOMBSTONE,
    ZERO_VERSION,
    flags_of,
    head_of,
    is_lead,
    lead_of,
    make_record,
    value_of,
)
from merklekv.engine.time_gate import MAX_TRUNCATION_AHEAD_S
from merklekv.net.client import Client, NodeError, Reply, Unreachable
from merklekv.net.commands.records import MERGE_SLICE_RECORDS, PAGE_BYTES, PAGE_RECORDS_MAX, fetch
from merklekv.node_id import NODE_ID_BYTES_MAX

OLD = (1_600_000_000 * 10**9).to_bytes(8, "big") + bytes(16)
NEW = (1_700_000_000 * 10**9).to_bytes(8, "big") + bytes(16)
Pair = tuple[bytes, bytes]


@pytest.fixture
def client(server: StartedServer) -> Iterator[Client]:
    host, port = server.address
    with Client(host, port) as connected:
        yield connected


def page(client: Client, after: bytes, *options: bytes, count: int = 10) -> tuple[bytes | None, list[Pair]]:
    """One RECORDS: where to go on, and the records put together."""
    reply = client.call(b"RECORDS", after, b"%d" % count, *options)
    assert isinstance(reply, list)
    following, parts = reply
    assert following is None or isinstance(following, bytes)
    assert isinstance(parts, list)
    assert all(is_lead(head) for head in parts[1::3])  # type: ignore[arg-type]
    pairs = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return following, [(key, head + value) for key, head, value in pairs]  # type: ignore[operator, misc]


def everything(client: Client, *options: bytes, count: int = 10) -> list[Pair]:
    """All pages, one after the other."""
    pairs: list[Pair] = []
    after: bytes | None = b""
    while after is not None:
        after, some = page(client, after, *options, count=count)
        assert len(some) <= count
        pairs += some
    return pairs


def parts_of(*pairs: Pair) -> list[bytes]:
    return [part for key, record in pairs for part in (key, lead_of(record), value_of(record))]


def pair(key: bytes, value: bytes = b"v", version: bytes = OLD, tombstone: bool = False) -> Pair:
    return key, make_record(key, version, value, tombstone=tombstone)


def fill(engine: Engine) -> None:
    engine.join()
    for number in range(57):
        engine.set(b"key:%03d" % number, b"%d" % number)
    for key in (b"\x00", b"\xff", b"a\r\nb", b"z" * MAX_KEY_SIZE):
        engine.set(key, key)
    engine.delete(b"key:005")
    engine.commit()


@pytest.mark.parametrize("count", [1, 2, 7, 60, 61, 62, PAGE_RECORDS_MAX])
def test_records_in_key_order_with_the_dead(count: int, engine: Engine, client: Client) -> None:
    fill(engine)
    pairs = everything(client, count=count)
    assert len(pairs) == 61
    assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)
    assert all(record == engine.record(key) for key, record in pairs)
    assert flags_of(dict(pairs)[b"key:005"]) == TOMBSTONE


def test_records_under_a_prefix(engine: Engine, client: Client) -> None:
    fill(engine)
    keys = [key for key, _ in everything(client, b"PREFIX", b"key:01", count=3)]
    assert keys == [b"key:%03d" % number for number in range(10, 20)]
    assert [key for key, _ in everything(client, b"prefix", b"\xff")] == [b"\xff"]
    assert everything(client, b"PREFIX", b"no such") == []
    assert page(client, b"key:017", b"PREFIX", b"key:01")[1][0][0] == b"key:018"


def test_records_of_nothing(client: Client) -> None:
    assert page(client, b"") == (None, [])


def test_the_record_of_one_key(engine: Engine, client: Client) -> None:
    fill(engine)
    for key in (b"key:004", b"key:005", b"\x00", b"\xff", b"z" * MAX_KEY_SIZE):
        assert fetch(client, key) == engine.record(key) is not None
    for key in (b"key:", b"key:0040", b"key:057", b"\xff\xff", b"z"):
        assert fetch(client, key) is None, "others begin like it, or nothing does"


@pytest.mark.parametrize("reply", [None, 1, [], [None], [None, None], [None, [b"k", b"head"]], [None, [b"k", 1, b""]]])
def test_a_strange_reply_is_no_record(reply: Reply, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "call", lambda *parts: reply)
    with pytest.raises(Unreachable, match="answers RECORDS strangely"):
        fetch(client, b"k")


def test_a_page_is_bounded_in_bytes(engine: Engine, client: Client) -> None:
    size = PAGE_BYTES // 4
    for number in range(9):
        engine.set(b"%d" % number, bytes(size))
    engine.commit()
    following, pairs = page(client, b"", count=1000)
    assert sum(len(record) for _, record in pairs) <= PAGE_BYTES + size + HEAD_SIZE
    assert following is not None
    assert len(everything(client, count=1000)) == 9


def test_the_buckets_together_are_all_records(engine: Engine, client: Client) -> None:
    fill(engine)
    heads = [(key, head_of(engine.record(key))) for key, _ in everything(client)]  # type: ignore[arg-type]
    wanted = {bucket_of(key) for key, _ in heads}
    for bucket in (*wanted, *({0, BUCKETS - 1} - wanted)):
        parts = client.call(b"BUCKET", b"%d" % bucket)
        assert isinstance(parts, list)
        expected = [pair for pair in heads if bucket_of(pair[0]) == bucket]
        assert list(zip(parts[::2], parts[1::2], strict=True)) == expected


def test_records_over_resp3(server: StartedServer, engine: Engine) -> None:
    with Wire(server.address) as wire:
        assert wire.call("HELLO", "3").startswith(b"%")
        assert wire.call("RECORDS", "", "1") == b"*2\r\n_\r\n*0\r\n"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ([b"RECORDS", b"", b"0"], "count must be a number from 1 to 1000"),
        ([b"RECORDS", b"", b"%d" % (PAGE_RECORDS_MAX + 1)], "count must be"),
        ([b"RECORDS", b"", b"x"], "count must be"),
        ([b"RECORDS", b""], "wrong number of arguments for 'records'"),
        ([b"RECORDS", b"", b"1", b"PREFIX"], "syntax error"),
        ([b"RECORDS", b"", b"1", b"OTHER", b"x"], "syntax error"),
        ([b"RECORDS", b"", b"1", b"PREFIX", b"x", b"y"], "syntax error"),
        ([b"BUCKET", b"-1"], "bucket must be a number from 0 to 65535"),
        ([b"BUCKET", b"65536"], "bucket must be a number from 0 to 65535"),
        ([b"BUCKET", b"x"], "bucket must be a number"),
        ([b"BUCKET"], "wrong number of arguments for 'bucket'"),
        ([b"TRUNCATION", b"x"], "wrong number of arguments for 'truncation'"),
        ([b"MERGE", b"n"], "wrong number of arguments for 'merge'"),
        ([b"MERGE", b"n", b"k", bytes(41), b"v", b"k"], "wrong number of arguments for 'merge'"),
        (
            [b"MERGE", b"n", b"k", bytes(40), b"v"],
            "(version, flags, digest), or 49 with an expiry, not 40",
        ),
        (
            [b"MERGE", b"n", b"k", bytes(42), b"v"],
            "(version, flags, digest), or 49 with an expiry, not 42",
        ),
        ([b"MERGE", b"", b"k", bytes(41), b"v"], "origin b'' is no node id, which has 1 to 128 bytes"),
        ([b"MERGE", b"a/b", b"k", bytes(41), b"v"], "origin b'a/b' is no node id"),
        ([b"MERGETRUNCATION", b"\xff", bytes(24)], r"origin b'\xff' is no node id"),
        ([b"MERGE", b"n" * 129, b"k", bytes(41), b"v"], "is no node id"),
        ([b"MERGETRUNCATION", b"n", bytes(23)], "a truncation version has 24 bytes, not 23"),
        ([b"MERGETRUNCATION", b"n", bytes(25)], "a truncation version has 24 bytes, not 25"),
        ([b"MERGETRUNCATION", b"", bytes(24)], "origin b'' is no node id"),
    ],
)
def test_wrong_requests_change_nothing(request_: list[bytes], words: str, engine: Engine, client: Client) -> None:
    with pytest.raises(NodeError, match=re.escape(words)):
        client.call(*request_)
    assert client.call(b"PING") == b"PONG"
    assert engine.root() == bytes(32)


def test_one_bad_head_among_good_ones_changes_nothing(engine: Engine, client: Client) -> None:
    good = parts_of(*(pair(b"%d" % number) for number in range(3)))
    with pytest.raises(NodeError, match=r"a head has 41 bytes .*, not 1$"):
        client.call(b"MERGE", b"n", *good, b"k", b"x", b"v")
    assert engine.live_count == 0


def test_the_truncation_version(engine: Engine, client: Client) -> None:
    assert client.call(b"TRUNCATION") == ZERO_VERSION
    engine.truncate()
    engine.commit()
    assert client.call(b"TRUNCATION") == engine.truncation != ZERO_VERSION


def test_merge_takes_the_larger_version(engine: Engine, client: Client) -> None:
    assert client.call(b"MERGE", b"n" * NODE_ID_BYTES_MAX, *parts_of(pair(b"a"), pair(b"b"), pair(b"c"))) == [3, 0, []]
    changes = [pair(b"a", b"w", NEW), pair(b"b", b"", NEW, tombstone=True), pair(b"c", b"w", ZERO_VERSION), pair(b"d")]
    assert client.call(b"MERGE", b"n", *parts_of(*changes)) == [3, 1, []]
    assert client.call(b"MERGE", b"n", *parts_of(*changes)) == [0, 4, []]
    assert [engine.get(key) for key in (b"a", b"b", b"c", b"d")] == [b"w", None, b"v", b"v"]
    assert engine.record(b"a") == changes[0][1]
    assert engine.record(b"b") == changes[1][1]


def test_bad_records_are_refused_one_by_one(engine: Engine, client: Client) -> None:
    far = (1 << 62).to_bytes(8, "big") + bytes(16)
    client.call(b"MERGE", b"n", *parts_of(pair(b"conflict")))
    digest = pair(b"digest")[1]
    bad = [
        (b"digest", digest[:-1] + b"w"),
        pair(b"conflict", b"other"),
        pair(b"clock", version=far),
        pair(b"flags", b"v", tombstone=True),
        pair(b"k" * 512),
        pair(b""),
    ]
    reply = client.call(b"MERGE", b"n", *parts_of(pair(b"first"), *bad, pair(b"last")))
    assert isinstance(reply, list)
    assert reply[:2] == [2, 0]
    assert reply[2] == [
        b"digest",
        b"digest",
        b"conflict",
        b"conflict",
        b"clock",
        b"clock",
        b"flags",
        b"flags",
        b"k" * 512,
        b"key size",
        b"",
        b"key size",
    ]
    assert [engine.get(key) for key in (b"first", b"last", b"conflict")] == [b"v"] * 3
    assert engine.live_count == 3


def test_the_largest_value_travels_both_ways(engine: Engine, client: Client) -> None:
    """Also with an expiry, which is no part of the value."""
    large = [
        (key, make_record(key, OLD, b"v" * engine.max_value_size, expiry=expiry))
        for key, expiry in ((b"expires", LATER_MS), (b"stays", None))
    ]
    for one in large:
        assert client.call(b"MERGE", b"n", *parts_of(one)) == [1, 0, []]
    assert everything(client) == large
    assert engine.expiry(b"expires") == LATER_MS


@pytest.mark.parametrize("count", [MERGE_SLICE_RECORDS, MERGE_SLICE_RECORDS + 1, 5000])
def test_many_records_in_one_merge(count: int, engine: Engine, client: Client) -> None:
    pairs = [pair(b"%06d" % number) for number in range(count)]
    assert client.call(b"MERGE", b"n", *parts_of(*pairs)) == [count, 0, []]
    assert everything(client, count=1000) == pairs


def text_of(reply: Reply) -> str:
    assert isinstance(reply, bytes)
    return reply.decode()


def test_merge_waits_while_a_checkpoint_is_behind(tmp_path: Path, start: Start) -> None:
    engine = Engine(tmp_path / "full", memtable_size=64 << 10, checkpoint="manual", durability="never")
    while not engine.gate.stalled:
        engine.set(b"filler:%d" % engine.live_count, bytes(1000))
        engine.commit()
    fillers = engine.live_count
    pairs = [pair(b"%06d" % number) for number in range(MERGE_SLICE_RECORDS)]
    server = start(engine=engine)
    with Client(*server.address) as client, Client(*server.address) as other:
        client.send([[b"MERGE", b"n", *parts_of(*pairs)]])
        wait_until(lambda: "sync_commands:1\r\n" in text_of(other.call(b"STATS")), what="the request to be in")
        assert other.call(b"DBSIZE") == fillers
        engine.checkpoint_now()
        assert client.receive() == [len(pairs), 0, []]
    server.stop(deadline_s=5)
    engine.close()


def test_a_truncation_version_from_elsewhere(engine: Engine, client: Client) -> None:
    client.call(b"MERGE", b"n", *parts_of(pair(b"old"), pair(b"new", version=NEW)))
    between = (1_650_000_000 * 10**9).to_bytes(8, "big") + bytes(16)
    assert client.call(b"MERGETRUNCATION", b"n", between) == 1
    assert client.call(b"MERGETRUNCATION", b"n", between) == 0
    assert client.call(b"MERGETRUNCATION", b"n", OLD) == 0
    assert client.call(b"TRUNCATION") == between
    assert [key for key, _ in everything(client)] == [b"new"]
    assert client.call(b"MERGE", b"n", *parts_of(pair(b"old"))) == [0, 1, []]


def test_all_records_of_one_node_make_another_equal(tmp_path: Path, engine: Engine, client: Client) -> None:
    other = Engine(tmp_path / "other", checkpoint="manual", durability="never")
    fill(other)
    pairs, _ = other.records_page(limit=1000)
    for some in (pairs[40:], pairs[:50], pairs):
        client.call(b"MERGE", b"other", *parts_of(*some))
    assert engine.root() == other.root()
    other.close()


@pytest.mark.parametrize("ahead_s", [MAX_TRUNCATION_AHEAD_S + 60, 10 * 365 * 86_400, None])
def test_a_truncation_too_far_ahead_is_refused(engine: Engine, client: Client, ahead_s: int | None) -> None:
    client.call(b"MERGE", b"n", *parts_of(pair(b"kept")))
    latest = (1 << 64) - 1 if ahead_s is None else time.time_ns() + ahead_s * 10**9
    refusal = r"a truncation version of 2\d{3}-.* UTC, .* the wall clock here"
    with pytest.raises(NodeError, match=refusal):
        client.call(b"MERGETRUNCATION", b"n", latest.to_bytes(8, "big") + bytes(16))
    assert client.call(b"TRUNCATION") == ZERO_VERSION
    assert [key for key, _ in everything(client)] == [b"kept"]
    assert engine.clock.newest < time.time_ns() + 10**9
