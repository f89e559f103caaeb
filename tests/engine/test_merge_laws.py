"""Merging is commutative, associative and idempotent: equal sets, equal roots, whatever the order of arrival.

Several engines in one process stand for nodes.  They merge records and truncation versions.  Between two
of them an engine may freeze its memtable, make a checkpoint, or be opened anew, which must not show.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from fixtures import engines
from fixtures.engines import DAY_NS, DRIFT_NS, NOON, Wall
from fixtures.records import with_flags
from fixtures.support import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from merklekv.engine.engine import Engine
from merklekv.engine.format import MAX_KEY_SIZE, OP_PREPEND, OP_SET, OP_TRUNCATE
from merklekv.engine.merger import MergeResult
from merklekv.engine.record import make_record, timestamp_of, version_of
from merklekv.engine.time_gate import MAX_TRUNCATION_AHEAD_S
from merklekv.errors import InvalidArgument

Arrival = tuple[bytes, bytes | None]  # key and record, or a truncation version and None

names = st.integers(0, 5).map(lambda number: b"k%d" % number)


def record_at(key: bytes, ts: int, op: int) -> bytes:
    """One version has one content, as with real nodes."""
    return engines.record(key, None if (ts + op) % 4 == 0 else b"%d.%d" % (ts, op), NOON + ts, op)


records = st.builds(lambda key, ts, op: (key, record_at(key, ts, op)), names, st.integers(1, 12), st.integers(0, 2))
truncations = st.builds(lambda ts, op: (engines.version(NOON + ts, op), None), st.integers(1, 12), st.integers(0, 2))
arrivals = st.lists(records | records | records | truncations, max_size=16)
chances = st.randoms(use_true_random=False)
fewer = settings(max_examples=settings().max_examples // 2)  # where an example is several engines


def arrive(engine: Engine, arrival: Arrival) -> None:
    key, record = arrival
    if record is None:
        engine.merge_truncation(key, b"elsewhere")
    else:
        engine.merge([(OP_SET, key, record)], b"elsewhere")


def take_in(engine: Engine, history: Sequence[Arrival], chance: random.Random) -> None:
    """One by one, with the engine's inner life in between."""
    for arrival in history:
        arrive(engine, arrival)
        act = chance.random()
        if act < 0.1:
            engines.freeze(engine)
        elif act < 0.2:
            engine.checkpoint_now()
        elif act < 0.4:
            engine.commit()
        if len(engine.table.frozen) >= 3:
            engine.checkpoint_now()


def outcome(history: Sequence[Arrival]) -> tuple[dict[bytes, bytes], bytes]:
    """What the laws say: of each key the newest, above the largest truncation version."""
    truncation = max([truncation for truncation, record in history if record is None], default=bytes(24))
    newest: dict[bytes, bytes] = {}
    for key, record in history:
        if record is not None and record >= truncation:
            newest[key] = max(record, newest.get(key, b""))
    return newest, truncation


def state(engine: Engine) -> tuple[dict[bytes, bytes], bytes]:
    return engines.everything(engine), engine.truncation


@fewer
@given(arrivals, st.lists(chances, min_size=3, max_size=3))
def test_any_order_of_arrival_ends_the_same(history: list[Arrival], drawn: list[random.Random]) -> None:
    """With duplicates, over restarts, and with what each node already has in its base."""
    with ExitStack() as stack:
        roots = set()
        for chance in drawn:
            engine = stack.enter_context(engines.fresh_engine())
            order = history + chance.choices(history, k=3) if history else []
            chance.shuffle(order)
            take_in(engine, order, chance)
            assert state(engine) == outcome(history)
            engines.checkpoint(engine)
            roots.add((engine.root(), engine.live_count, engine.tombstone_count))
            assert state(engine) == outcome(history)
        assert len(roots) == 1


@fewer
@given(st.lists(arrivals, min_size=3, max_size=3), chances)
def test_nodes_that_tell_each_other_everything_agree(histories: list[list[Arrival]], chance: random.Random) -> None:
    """Three nodes with changes of their own, exchanging in any order, twice; a third time changes nothing."""
    with ExitStack() as stack:
        opened = [stack.enter_context(engines.fresh_engine()) for _ in histories]
        for engine, history in zip(opened, histories, strict=True):
            take_in(engine, history, chance)
        everything = [arrival for history in histories for arrival in history]
        for _ in range(2):
            pairs = [(giver, taker) for giver in opened for taker in opened if giver is not taker]
            chance.shuffle(pairs)
            for giver, taker in pairs:
                tell(giver, taker)
        for engine in opened:
            engines.checkpoint(engine)
            assert state(engine) == outcome(everything)
        assert len({engine.root() for engine in opened}) == 1
        before = opened[0].log.appended
        tell(opened[1], opened[0])
        assert opened[0].log.appended == before


def tell(giver: Engine, taker: Engine) -> None:
    """Everything that one node holds."""
    taker.merge_truncation(giver.truncation, b"giver")
    taker.merge([(OP_SET, key, record) for key, record in engines.everything(giver).items()], b"giver")


@given(arrivals, chances)
def test_merging_again_changes_nothing(history: list[Arrival], chance: random.Random) -> None:
    with engines.fresh_engine() as engine:
        take_in(engine, history, chance)
        before = state(engine), engine.log.appended, engine.clock.newest
        for key, record in history:
            if record is None:
                assert not engine.merge_truncation(key, b"again")
            else:
                assert engine.merge([(OP_SET, key, record)], b"again") == MergeResult(0, 1, [])
        assert (state(engine), engine.log.appended, engine.clock.newest) == before


@given(arrivals, names, chances)
def test_a_local_write_beats_what_the_node_shows(history: list[Arrival], key: bytes, chance: random.Random) -> None:
    """Whatever came from nodes with a clock ahead, and wherever the own wall stands."""
    wall = Wall()
    with engines.fresh_engine(wall_clock=wall) as engine:
        take_in(engine, history, chance)
        wall.now -= chance.choice([0, 5, 5 * DAY_NS])
        newest = max([engine.truncation, *(version_of(record) for record in engines.everything(engine).values())])
        shown = engine.record(key) or engine.truncation
        engine.set(key, b"local")
        record = engine.record(key)
        assert engine.get(key) == b"local"
        assert record is not None
        assert record > shown
        engine.truncate()
        assert engine.page() == ([], None)
        if timestamp_of(newest) <= wall.now + MAX_TRUNCATION_AHEAD_S * 10**9:
            assert engine.truncation > newest
            assert state(engine)[0] == {}
        engine.set(key, b"after")
        engines.checkpoint(engine)
        assert engines.values(engine) == {key: b"after"}


def test_a_truncate_spares_a_later_write_elsewhere(make_engine: Callable[..., Engine]) -> None:
    wall = Wall()
    here, there = make_engine("here", wall_clock=wall), make_engine("there", wall_clock=wall)
    for number in range(10):
        here.set(b"k%d" % number, b"")
    tell(here, there)
    wall.now += 1000
    here.truncate()
    there.set(b"k3", b"earlier?")  # the same moment: which of them is later is up to the op ids, for both alike
    wall.now += 1000
    there.set(b"k7", b"later")
    tell(here, there)
    tell(there, here)
    for engine in (here, there):
        engines.checkpoint(engine)
    assert here.root() == there.root()
    assert engines.values(here) == engines.values(there)
    assert here.get(b"k7") == b"later"
    assert here.live_count <= 2


def refusals(engine: Engine, *items: tuple[int, bytes, bytes]) -> list[str]:
    """The reasons, with nothing changed."""
    before = state(engine), engine.log.appended, engine.clock.newest
    result = engine.merge(items, b"elsewhere")
    assert result.applied == result.superseded == 0
    assert (state(engine), engine.log.appended, engine.clock.newest) == before
    assert [key for key, _ in result.refused] == [key for _, key, _ in items]
    return [reason for _, reason in result.refused]


def test_what_cannot_be_is_refused_with_a_reason(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_value_size=1000)
    engine.merge([(OP_SET, b"here", engines.record(b"here", b"one", NOON))], b"x")
    sound = engines.record(b"k", b"v", NOON)

    def refused(key: bytes, record: bytes, op: int = OP_SET) -> str:
        return refusals(engine, (op, key, record))[0]

    assert refused(b"", engines.record(b"", b"v", NOON)) == "key size"
    assert refused(b"x" * (MAX_KEY_SIZE + 1), sound) == "key size"
    assert refused(b"k", engines.record(b"k", b"x" * 1001, NOON)) == "value size"
    assert refused(b"other", sound) == "digest"
    assert refused(b"k", b"") == "digest"
    assert refused(b"k", sound[:-1]) == "digest"
    assert refused(b"k", sound, OP_TRUNCATE) == refused(b"k", sound, 0) == refused(b"k", sound, OP_SET | 0x80) == "op"
    assert refused(b"k", make_record(b"k", engines.version(NOON), b"v", expiry=0)) == "expiry"
    assert refused(b"k", with_flags(b"k", sound, 8)) == "flags"
    assert refused(b"k", make_record(b"k", engines.version(NOON), b"v", tombstone=True)) == "flags"
    assert refused(b"k", engines.record(b"k", b"v", NOON + DRIFT_NS + 1)) == "clock"
    assert refused(b"here", engines.record(b"here", b"two", NOON)) == "conflict"
    assert engine.get(b"here") == b"one"


def test_what_is_just_within_the_limits_is_taken(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_value_size=1000)
    items = [
        (OP_PREPEND, b"x" * MAX_KEY_SIZE, engines.record(b"x" * MAX_KEY_SIZE, b"v", NOON)),
        (OP_SET, b"k", engines.record(b"k", b"x" * 1000, NOON + DRIFT_NS)),
        (OP_SET, b"\x00", engines.record(b"\x00", b"", 0)),
    ]
    assert engine.merge(items, b"e" * MAX_KEY_SIZE) == MergeResult(3, 0, [])


def test_one_bad_record_does_not_hold_up_the_others(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    good = engines.record(b"good", b"v", NOON)
    items = [(OP_SET, b"bad", good), (OP_SET, b"good", good), (OP_SET, b"good", good)]
    assert engine.merge(items, b"x") == MergeResult(1, 1, [(b"bad", "digest")])
    assert engine.get(b"good") == b"v"


@pytest.mark.parametrize("in_base", [False, True])
def test_a_truncate_deletes_the_future_without_going_there(make_engine: Callable[..., Engine], in_base: bool) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.set(b"now", b"v")
    wall.now += 5 * DAY_NS
    engine.set(b"future", b"v")
    engine.set(b"future too", b"v")
    engine.delete(b"future too")
    if in_base:
        engine.checkpoint_now()
    wall.now = NOON + 10**9
    engine.truncate()
    assert engine.page() == ([], None)
    assert timestamp_of(engine.truncation) == wall.now
    wall.now += 1
    engine.set(b"after", b"v")
    record = engine.record(b"after")
    assert record is not None
    assert timestamp_of(record) == wall.now
    engine.commit()
    assert engine.page(b"")[0] == [b"after"]


@pytest.mark.parametrize("size", [0, 23, 25])
def test_a_truncation_version_is_a_version(make_engine: Callable[..., Engine], size: int) -> None:
    engine = make_engine()
    with pytest.raises(InvalidArgument, match=f"truncation version of {size} bytes"):
        engine.merge_truncation(b"\x01" * size, b"x")
    assert engine.truncation == bytes(24)


def test_a_truncation_version_too_far_ahead_is_refused(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    engine.set(b"k", b"v")
    minute_ns = MAX_TRUNCATION_AHEAD_S * 10**9
    assert not engine.merge_truncation(engines.version(NOON + minute_ns + 1), b"x")
    assert engine.get(b"k") == b"v"
    assert engine.merge_truncation(engines.version(NOON + minute_ns), b"x")
    assert engine.get(b"k") is None


def test_the_root_is_ready_again_by_itself(make_engine: Callable[..., Any]) -> None:
    """After a truncation that spares some of the base, a checkpoint makes the tree whole without another write."""
    engine = make_engine()
    for number in range(10):
        arrive(engine, (b"k%d" % number, record_at(b"k%d" % number, number, 1)))
    engines.checkpoint(engine)
    engine.merge_truncation(engines.version(NOON + 5), b"x")
    assert not engine.root_ready
    with engine.commits.lock:
        engine.commits.write()  # a crash right behind this leaves the truncation version in the open segment
    engine.close()
    engine = make_engine(checkpoint="process")
    wait_until(lambda: engine.root_ready, what="the root")
    assert engine.live_count + engine.tombstone_count == 5
