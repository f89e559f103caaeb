"""Exchanges: afterwards both nodes have the union, and the cost is proportional to the difference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest
from fixtures.counts import ROOMY, held_back, killed_with_a_log
from fixtures.engines import let_go_on, stall
from fixtures.exchanges import Node, agree, answer, carry, cluster, exchange, meet_all

from merklekv.engine.format import MAX_KEY_SIZE
from merklekv.engine.record import version_of
from merklekv.replication.cluster.lost_writes import INTERVALS_MAX
from merklekv.replication.sync import initiator as exchange_module
from merklekv.replication.sync import local_endpoint
from merklekv.replication.sync import responder as responder_module
from merklekv.replication.sync.messages import ExchangeFailed, decode, encode

KEYS = 3000


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    with cluster(tmp_path, "abc") as made:
        yield made


def fill(node: Node, count: int = KEYS, prefix: bytes = b"key") -> None:
    for number in range(count):
        node.engine.set(b"%b:%05d" % (prefix, number), b"v" * (number % 50))
    node.engine.commit()


def fill_both(first: Node, second: Node) -> None:
    """Both have the same records, one in the base and one in memory."""
    fill(first)
    first.engine.checkpoint_now()
    exchange(second, first)
    assert agree(first, second)


def test_two_empty_nodes_are_equal_after_one_round(nodes: list[Node]) -> None:
    report = exchange(nodes[0], nodes[1])
    assert (report.node, report.rounds, report.equal) == ("b", 1, True)


def test_equal_nodes_find_that_out_in_one_round_under_a_kilobyte(nodes: list[Node]) -> None:
    a, b, c = nodes
    fill_both(a, b)
    exchange(a, c)
    for first, second in ((a, b), (b, a), (b, c)):
        report = exchange(first, second)
        assert report.equal
        assert report.rounds == 1
        assert report.bytes_sent + report.bytes_received < 1024
        assert report.keys_sent + report.keys_received == 0


def test_nodes_that_were_started_often_do_so_too(tmp_path: Path) -> None:
    with cluster(tmp_path, "abcde") as nodes:
        nodes[0].set(b"key")
        meet_all(nodes)
        for _ in range(INTERVALS_MAX):
            for node in nodes:
                node.tick(3)
                node.reopen()
        meet_all(nodes)
        assert {len(intervals) for intervals in nodes[0].members.lost_writes.values()} == {INTERVALS_MAX}
        report = exchange(nodes[0], nodes[1])
        assert (report.equal, report.rounds) == (True, 1)
        assert report.bytes_sent + report.bytes_received < 1024


def test_one_differing_key_costs_a_few_kilobytes(nodes: list[Node]) -> None:
    a, b, _ = nodes
    fill_both(a, b)
    a.set(b"key:00007", b"new")
    for first, second in ((a, b), (b, a)):
        report = exchange(first, second)
        assert agree(a, b)
        assert report.rounds <= 5
        assert report.bytes_sent + report.bytes_received < 16 << 10
        assert report.keys_sent + report.keys_received == (first is a or not report.equal)


def test_both_directions_in_one_exchange(nodes: list[Node]) -> None:
    a, b, _ = nodes
    fill_both(a, b)
    for number in range(200):
        (a if number % 2 else b).set(b"key:%05d" % (7 * number), b"changed")
    a.set(b"only a")
    b.set(b"only b")
    a.set(b"both", b"older")
    b.now = a.now
    b.set(b"both", b"newer")
    report = exchange(a, b)
    assert agree(a, b)
    assert (report.keys_sent, report.keys_received, report.discarded) == (101, 102, 0)
    assert a.engine.get(b"both") == b"newer"


@pytest.mark.parametrize("durability", ["always", "everysec", "never"])
def test_every_durability(tmp_path: Path, durability: str) -> None:
    with cluster(tmp_path, "ab", durability=durability) as (a, b):
        a.set(b"k")
        exchange(b, a)
        assert agree(a, b)


@pytest.mark.parametrize("begins", ["empty", "full"])
def test_an_empty_node_takes_everything_page_by_page(
    nodes: list[Node], begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (exchange_module, responder_module):
        monkeypatch.setattr(module, "BATCH_BYTES", 10_000)
    a, b, _ = nodes
    fill(a)
    a.engine.checkpoint_now()
    a.delete(b"key:00100")
    fill(a, 50, b"later")
    report = exchange(b, a) if begins == "empty" else exchange(a, b)
    assert agree(a, b)
    assert report.keys_sent + report.keys_received == KEYS + 50
    assert report.rounds > 10
    assert exchange(a, b).equal


def test_a_nearly_empty_node_takes_everything_and_gives_what_it_has(nodes: list[Node]) -> None:
    a, b, c = nodes
    fill(a)
    fill(b, 5, b"own")
    report = exchange(b, a)
    assert agree(a, b)
    assert (report.keys_sent, report.keys_received) == (5, KEYS)
    fill(c, 5, b"more")
    exchange(a, c)
    assert agree(a, c)


def test_values_from_nothing_to_the_largest(tmp_path: Path) -> None:
    sizes = (0, 1, responder_module.INLINE_BYTES - 42, responder_module.INLINE_BYTES, 100_000)
    with cluster(tmp_path, "ab", max_value_size=100_000) as (a, b):
        for node, name in ((a, b"a"), (b, b"b")):
            fill(node, 20, b"same")
            for size in sizes:
                node.set(b"%b:%d" % (name, size), name * size)
            node.set(name * MAX_KEY_SIZE, name)
        exchange(a, b)
        assert agree(a, b)
        assert a.values()[b"b:100000"] == b"b" * 100_000


def test_small_batches_come_to_the_same(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATCH_BYTES", "BATCH_RECORDS", "BATCH_PRINTS", "BATCH_BUCKETS"):
        monkeypatch.setattr(exchange_module, name, 5)
    monkeypatch.setattr(local_endpoint, "BATCH_RECORDS", 5)
    monkeypatch.setattr(local_endpoint, "BATCH_BYTES", 5)
    monkeypatch.setattr(responder_module, "BATCH_BYTES", 50)
    monkeypatch.setattr(responder_module, "INLINE_BYTES", 60)
    a, b, _ = nodes
    fill(a, 100, b"a")
    fill(b, 100, b"b")
    exchange(a, b)
    assert agree(a, b)


def test_a_batch_ends_at_its_limits(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "BATCH_RECORDS", 10)
    a, b, _ = nodes
    for count, rounds in ((10, 1), (11, 2)):
        a.empty()
        b.empty()
        fill(a, count)
        report = exchange(a, b)
        assert report.keys_sent == count
        assert report.rounds == 2 + rounds  # hello and done


def test_full_finds_what_the_tree_hides(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = nodes
    fill_both(a, b)
    a.set(b"key:00007", b"hidden")
    monkeypatch.setattr(a.engine, "inner_digests", b.engine.inner_digests)  # as if the tree were wrong
    monkeypatch.setattr(a.engine, "root", b.engine.root)
    assert exchange(a, b).equal
    report = exchange(a, b, full=True)
    assert b.engine.get(b"key:00007") == b"hidden"
    assert report.keys_sent == 1
    monkeypatch.undo()
    assert agree(a, b)


def test_full_between_equal_nodes_moves_nothing(nodes: list[Node]) -> None:
    a, b, _ = nodes
    fill_both(a, b)
    report = exchange(a, b, full=True)
    assert report.keys_sent + report.keys_received == 0


def test_verify_compares_roots_afterwards(nodes: list[Node]) -> None:
    a, b, _ = nodes
    fill(a)
    kinds: list[str] = []

    def keep(_: int, request: bytes) -> bytes:
        kinds.append(decode(request, 1 << 24)[0])
        return request

    for full in (False, True):
        report = carry(b.initiate(full=full, verify=True).steps(), a, before=keep)
        assert not report.equal
        assert kinds[-2:] == ["done", "hello"]
    assert agree(a, b)


def test_verify_errs_when_they_go_on_differing(nodes: list[Node]) -> None:
    a, b, _ = nodes
    fill_both(a, b)
    numbers = iter(range(1000))

    def write(_: int, request: bytes) -> bytes:
        b.set(b"busy:%d" % next(numbers))
        return request

    with pytest.raises(ExchangeFailed, match="the roots still differ"):
        carry(a.initiate(verify=True).steps(), b, before=write)


def test_what_is_written_meanwhile_stays(nodes: list[Node]) -> None:
    """The later version stands on both nodes, whatever the exchange had in hand."""
    a, b, _ = nodes
    fill(a, 500, b"a")
    fill(b, 500, b"b")
    written: dict[bytes, bytes] = {}

    def write(number: int, message: bytes) -> bytes:
        for node, name in ((a, b"a"), (b, b"b")):
            key = b"%b:%05d" % (name, number)
            written[key] = b"during %d" % number
            node.tick(100)
            node.set(key, written[key])
            node.set(b"new:%b:%d" % (name, number))
        return message

    carry(a.initiate().steps(), b, before=write, after=write)
    exchange(a, b)
    assert agree(a, b)
    values = a.values()
    assert {key: values[key] for key in written} == written


def test_truncations_are_exchanged_in_both_directions(nodes: list[Node]) -> None:
    a, b, c = nodes
    fill_both(a, b)
    b.tick(40)
    b.engine.truncate()
    b.set(b"survivor")
    exchange(a, b)
    assert agree(a, b)
    assert set(a.values()) == {b"survivor"}
    fill(c, 10)
    exchange(b, c)
    assert set(c.values()) == {b"survivor"}


def test_a_truncation_that_keeps_records_needs_no_tree(nodes: list[Node]) -> None:
    """The tree of the base is unknown until a scan; the exchange works without it."""
    a, b, c = nodes
    fill_both(a, b)
    exchange(c, a)
    b.tick(40)
    for number in range(10):
        b.set(b"old:%d" % number)
    exchange(a, b)
    a.engine.checkpoint_now()
    truncation = version_of(b.records()[b"old:5"])
    c.engine.merge_truncation(truncation, b"operator")
    c.engine.commit()
    for first, second in ((c, a), (a, b), (c, b)):
        exchange(first, second)
    assert not a.engine.root_ready
    for node in nodes:
        node.engine.checkpoint_now()
    assert agree(a, b, c)
    assert set(a.values()) == {b"old:%d" % number for number in range(5, 10)}


def test_three_nodes_along_a_line(nodes: list[Node]) -> None:
    a, b, c = nodes
    for node in nodes:
        fill(node, 100, node.name.encode())
    exchange(a, b)
    exchange(b, c)
    exchange(a, b)
    assert agree(a, b, c)


def test_the_responder_may_wait_for_a_checkpoint(tmp_path: Path) -> None:
    with cluster(tmp_path, "ab", memtable_size=64 << 10) as (a, b):
        for number in range(800):
            a.engine.set(b"key:%d" % number, b"v" * 300)
            if number % 100 == 0:
                a.engine.commit()
                a.engine.checkpoint_now()
        exchange(a, b)
        assert agree(a, b)


def test_the_initiator_may_wait_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster(tmp_path, "ab", memtable_size=64 << 10) as (a, b):

        def checkpoint_instead(seconds: float) -> bool:
            b.engine.checkpoint_now()
            return True

        for number in range(800):
            a.engine.set(b"key:%d" % number, b"v" * 300)
            if number % 100 == 0:
                a.engine.commit()
                a.engine.checkpoint_now()
        monkeypatch.setattr(b.engine, "wait_for_room", checkpoint_instead)
        exchange(b, a)
        assert agree(a, b)
        now = 0.0

        def wait_in_vain(seconds: float) -> bool:
            nonlocal now
            now += seconds
            stall(b.engine)
            return False

        monkeypatch.setattr(b.engine, "wait_for_room", wait_in_vain)
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: now)
            stall(b.engine)
            a.set(b"more")
            with pytest.raises(ExchangeFailed, match="checkpoints here are 60 s behind"):
                exchange(b, a)
        let_go_on(b.engine)
        assert exchange_module.STALL_WAIT_S <= now < exchange_module.STALL_WAIT_S + 1


def test_answers_are_made_in_slices(nodes: list[Node]) -> None:
    a, b, _ = nodes
    fill(a)
    fill(b, KEYS, b"other")
    requests: list[bytes] = []

    def remember(_: object, request: bytes) -> bytes:
        requests.append(request)
        return request

    carry(a.initiate().steps(), b, before=remember)
    b.reopen()
    assert max(sum(1 for _ in b.responder.answer(request)) for request in requests) >= 1
    assert answer(b, requests[0])


@pytest.mark.parametrize("reached", [36, 15], ids=["all", "as many as one answer takes"])
def test_records_that_are_wanted_are_read_in_slices(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, reached: int
) -> None:
    monkeypatch.setattr(responder_module, "SLICE_READS", 10)
    a, _, _ = nodes
    fill(a, 35)
    records = a.records()
    wants = [*records, b"unknown"]
    size = sum(len(key) + len(records.get(key, b"")) for key in wants[:reached])
    monkeypatch.setattr(responder_module, "BATCH_BYTES", size)
    read: list[bytes] = []
    whole = a.engine.record

    def record(key: bytes) -> bytes | None:
        read.append(key)
        return whole(key)

    monkeypatch.setattr(a.engine, "record", record)
    clock = {"to": a.engine.clock.writer, "gc_horizon": a.engine.gc_horizon, "new_gc_horizon": 0}
    reader = {"origin": "b", "max_value_size": 1000}
    slices = a.responder.answer(encode("transfer", **clock, **reader, records=[], stale=[], wants=wants))
    most = before = 0
    try:
        while True:
            next(slices)
            most, before = max(most, len(read) - before), len(read)
    except StopIteration as end:
        _, fields = decode(end.value, 1 << 20)
    assert (most, len(read)) == (10, reached)
    assert (fields.number("served"), fields.pairs("records")) == (reached, list(records.items())[:reached])


@pytest.mark.parametrize("is_initiator", [True, False])
def test_leaves_that_become_unknown_during_an_exchange(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, is_initiator: bool
) -> None:
    """They lack what is in memory only, and would be equal where the peer lacks that, too."""
    a, b, _ = nodes
    for number in range(100):
        a.set(b"k%d" % number)
    b.now = a.now
    exchange(b, a)
    for node in (a, b):
        node.engine.checkpoint_now()
    truncated = a if is_initiator else b
    truncated.set(b"k50", b"newer")
    leaf_digests = truncated.engine.leaf_digests

    def truncate_before(inner: int) -> bytes | None:
        truncated.engine.merge_truncation(version_of(truncated.records()[b"k30"]), b"elsewhere")
        assert not truncated.engine.root_ready
        return leaf_digests(inner)

    monkeypatch.setattr(truncated.engine, "leaf_digests", truncate_before)
    exchange(a, b)
    assert a.engine.get(b"k50") == b.engine.get(b"k50") == b"newer"
    for node in (a, b):
        node.engine.checkpoint_now()


@pytest.mark.parametrize("is_initiator", [True, False])
def test_an_exchange_with_a_node_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_initiator: bool
) -> None:
    """An initiator need not wait for its count to send everything; a responder waits."""
    killed_with_a_log(tmp_path / "counting", base=not is_initiator)  # a count of 0 would have it send nothing
    monkeypatch.setattr(exchange_module, "COUNT_WAIT_S", 0.0)
    with held_back() as may_count, cluster(tmp_path, "a") as (a,):
        counting = Node(tmp_path / "counting", checkpoint="process", memtable_size=ROOMY)
        assert counting.engine.is_counting
        a.set(b"another")
        if is_initiator:
            exchange(counting, a)
            assert counting.engine.is_counting
            assert a.records() == counting.records()
        else:
            Timer(0.05, may_count.set).start()
            exchange(a, counting)
            assert not counting.engine.is_counting
        may_count.set()
        assert counting.engine.wait_until_counted(60)
        assert agree(a, counting)
        counting.engine.close()


@pytest.mark.parametrize("gives", ["initiator", "responder"])
def test_keys_that_are_appended_faster_than_they_go_do_not_keep_an_exchange_from_its_end(
    nodes: list[Node], gives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes page by page, in key order, until these are too many; then it compares."""
    for module in (exchange_module, responder_module, local_endpoint):
        monkeypatch.setattr(module, "BATCH_RECORDS", 10)
    monkeypatch.setattr(responder_module, "SLICE_READS", 10)
    full, empty, _ = nodes
    fill(full, 100)
    first = full.records()

    def append(number: int, request: bytes) -> bytes:
        assert number < 200
        for key in range(20):
            full.engine.set(b"later:%05d:%05d" % (number, key), b"v")
        full.engine.commit()
        return request

    asking, asked = (full, empty) if gives == "initiator" else (empty, full)
    report = carry(asking.initiate().steps(), asked, before=append)
    assert report.rounds < 100
    assert first.items() <= empty.records().items()
    exchange(empty, full)
    assert agree(full, empty)
