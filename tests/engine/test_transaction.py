"""`Engine.transaction`: several verbs as one, for other threads, for the log and for a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from fixtures import engines
from fixtures.support import WAIT_S, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merklekv.engine.engine import Engine
from merklekv.errors import DiskFull, Shortage, Stalled

MakeEngine = Callable[..., Engine]


class OnPurposeError(Exception):
    pass


def fail(engine: Engine, error: Exception, *writes: Callable[[Engine], object]) -> None:
    """A transaction that ends in this error after these writes."""
    with engine.transaction(100):
        for write in writes:
            write(engine)
        raise error


def test_all_entries_are_in_one_frame(make_engine: MakeEngine) -> None:
    engine = make_engine()
    before = engine.log.end_lsn
    with engine.transaction(1000):
        engine.set(b"a", b"1")
        with engine.transaction(0):  # one within another is a part of that
            engine.increment(b"a", 1)
        engine.mset([(b"b", b"1"), (b"c", b"1")])
        engine.delete(b"c")
        assert engine.get(b"a") == b"2"
        assert engine.log.end_lsn == before
    engine.commit()
    assert engines.values(engine) == {b"a": b"2", b"b": b"1"}


def test_other_threads_see_nothing_before_its_end(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.set(b"a", b"old")
    seen: list[bytes | None] = []
    reader = threading.Thread(target=lambda: seen.append(engine.get(b"a")))
    with engine.transaction(0):
        engine.set(b"a", b"half")
        reader.start()
        engine.truncate()  # which makes new memtables
        engine.set(b"a", b"new")
        assert not seen
    reader.join(WAIT_S)
    assert seen == [b"new"]


WRITES: list[Callable[[Engine], object]] = [
    lambda engine: engine.set(b"a", b"1"),
    lambda engine: engine.set(b"new", b"1" * 5000),
    lambda engine: engine.delete(b"a"),
    lambda engine: engine.append(b"b", b"x"),
    lambda engine: engine.increment(b"n", 5),
    lambda engine: engine.truncate(),
    lambda engine: engine.mset([(b"a", b"2"), (b"m", b"2")]),
    lambda engine: engine.expire(b"b", 1 << 50),
    lambda engine: engines.freeze(engine),
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(st.sampled_from(WRITES), max_size=4),
    inside=st.lists(st.sampled_from(WRITES[:-1]), min_size=1, max_size=6),
    is_lone=st.booleans(),
)
def test_an_error_takes_all_of_it_back(
    before: list[Callable[[Engine], object]], inside: list[Callable[[Engine], object]], is_lone: bool
) -> None:
    with engines.fresh_engine() as engine:
        if not is_lone:
            engine.join()
        engine.mset([(b"a", b"0"), (b"b", b"0")])
        for write in before:
            write(engine)
        engine.commit()
        root, values = engine.root(), engines.values(engine)
        mark = engine.log.appended
        with pytest.raises(OnPurposeError):
            fail(engine, OnPurposeError(), *inside)
        if engine.log.appended != mark:
            with pytest.raises(Shortage, match="not stored"):
                engine.commit()
        assert (engine.root(), engines.values(engine)) == (root, values)
        engine.set(b"after", b"1")
        engine.commit()
        assert engines.values(engine) == values | {b"after": b"1"}


def test_what_finds_no_room_in_its_midst_is_not_stored(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.set(b"a", b"old")
    engine.commit()
    with pytest.raises(DiskFull):
        fail(engine, DiskFull("disk full, write not stored"), lambda engine: engine.set(b"a", b"new"))
    other: list[Exception] = []

    def commit() -> None:
        try:
            engine.commit()
        except Shortage as error:
            other.append(error)

    committing = threading.Thread(target=commit)  # any thread's commit rolls it back
    committing.start()
    committing.join(WAIT_S)
    assert [type(error) for error in other] == [DiskFull]
    assert engines.values(engine) == {b"a": b"old"}
    with pytest.raises(DiskFull):
        engine.commit()  # this thread is told, too
    wait_until(lambda: engine.commit() is None)


def test_a_stall_before_the_first_change_is_a_stall_and_then_a_shortage(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(Stalled):
        fail(engine, Stalled("on purpose"))
    with pytest.raises(Shortage, match="checkpoints are behind, transaction not stored"):
        fail(engine, Stalled("on purpose"), lambda engine: engine.set(b"a", b"1"))
    with pytest.raises(Shortage):
        engine.commit()
    assert engines.values(engine) == {}


def test_what_a_watched_key_has_changes_with_each_write(make_engine: MakeEngine) -> None:
    engine = make_engine()
    seen = [engine.state_of(b"a")]
    for write in (
        lambda: engine.set(b"a", b"1"),
        lambda: engine.set(b"a", b"1"),
        lambda: engine.expire(b"a", 1 << 50),
        lambda: engine.delete(b"a"),
        lambda: engine.set(b"a", b"1"),
    ):
        write()
        assert engine.state_of(b"a") == engine.state_of(b"a")
        seen.append(engine.state_of(b"a"))
    assert len(set(seen)) == len(seen)
    assert engine.state_of(b"") == engine.state_of(bytes(600)) == (b"", False)
