"""Two engines do the same steps, one with the core and one in pure Python: all that can be seen of them stays equal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fixtures.engines import DAY_NS, LATER_MS, NOON
from fixtures.twin_engines import KEYS, MAX_VALUE_SIZE, PureProcess, Step, pure_process
from hypothesis import given, settings
from hypothesis import strategies as st

from merklekv.engine.record import EXPIRY, pack_expiry
from merklekv.net.protocol.resp import Push

NOW_MS = NOON // 10**6


@pytest.fixture(scope="module")
def pure() -> Iterator[PureProcess]:
    with pure_process() as process:
        yield process


def compare(pure: PureProcess, steps: list[Step]) -> list[Any]:
    """Runs the steps in both; the results of each."""
    found, expected = pure.run_beside(steps)
    for number, ((result, state), (expected_result, expected_state)) in enumerate(zip(found, expected, strict=True)):
        where = f"step {number}, {steps[number]}"
        assert result == expected_result, where
        assert [name for name in state if state[name] != expected_state[name]] == [], where
    return [result for result, _ in found]


numbers = st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)])
keys = st.sampled_from(KEYS)
some_keys = st.lists(keys | st.binary(max_size=2), max_size=6)
values = (
    st.binary(max_size=6) | numbers.map(lambda number: b"%d" % number) | st.sampled_from([b"x" * 20_000, b"y" * 982])
)
times_ms = st.sampled_from([1, NOW_MS - 10**7, NOW_MS, NOW_MS + 1, NOW_MS + 5000, LATER_MS, 2**63 - 1])
expiries = st.none() | times_ms
strange_keys = st.sampled_from([b"", b"k" * 512, None, "text", 5, Push(b"a"), Push(b"\x00")])
strange_values = st.sampled_from([b"x" * (MAX_VALUE_SIZE + 1), b"x" * MAX_VALUE_SIZE, None, Push(b"12")])
items = st.lists(st.tuples(st.just(b"SET"), keys, values), max_size=70)
one_strange = st.tuples(
    items, st.tuples(st.none(), strange_keys, values) | st.tuples(st.none(), keys, strange_values), items
).map(lambda parts: [*parts[0], parts[1], *parts[2]])
packed = st.tuples(times_ms, values).map(lambda parts: pack_expiry(parts[0]) + parts[1])
own_expiries = st.lists(st.tuples(st.just(b"SET"), keys, packed), max_size=9)
ops = st.sampled_from([1, 3, 22, 0x81, 0x96])
lists = st.booleans()
stamps = st.sampled_from([1, NOON - DAY_NS, NOON - 1, NOON, NOON + 1, NOON + DAY_NS, 2**63, 2**64 - 2])


def steps_of(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.one_of([st.tuples(st.just(verb), drawn).map(_step) for verb, drawn in strategies.items()])


def _step(drawn: tuple[str, tuple[Any, ...]]) -> Step:
    return drawn[0], *drawn[1]


writes = steps_of(
    set=st.tuples(keys, values, expiries),
    set_batch=st.tuples(items | one_strange),
    put=st.tuples(ops, items | one_strange, st.just(0), st.just(b""), st.just(False), lists)
    | st.tuples(ops, items, st.just(EXPIRY), times_ms.map(pack_expiry), st.just(False), lists)
    | st.tuples(ops, own_expiries, st.just(EXPIRY), st.just(b""), st.just(False), lists),
    put_made=st.tuples(keys, st.none() | values, stamps, expiries),
    merge_one=st.tuples(keys, st.none() | values, st.integers(-2, 2), expiries, st.integers(0, 2)),
    increment=st.tuples(keys, numbers),
    increment_each=st.tuples(some_keys, numbers),
    delete=st.tuples(keys),
    delete_batch=st.tuples(some_keys),
    append=st.tuples(keys, values),
    change=st.tuples(st.just(18), keys, values),
    expire=st.tuples(keys, times_ms),
    persist=st.tuples(keys),
    rename=st.tuples(keys, keys),
    mset=st.tuples(st.lists(st.tuples(keys, values), max_size=4)),
)
reads = steps_of(get_each=st.tuples(some_keys | st.lists(keys, min_size=30, max_size=70), st.integers(-1, 30_000)))
others = steps_of(
    tick=st.tuples(st.sampled_from([0.001, 5.0, 86_400.0, -5.0])),
    count_from=st.tuples(st.sampled_from([2**32 - 2, 2**32 - 1, 0])),
    commit=st.just(()),
    freeze=st.just(()),
    checkpoint_now=st.just(()),
    commit_without_room=st.tuples(st.sampled_from([0.0, 0.5, 1.0])),
    truncate=st.just(()),
    join=st.just(()),
    raise_gc_horizon=st.tuples(st.sampled_from([NOON - 1, NOON + 1, NOON + DAY_NS])),
    collect_tombstones=st.tuples(st.integers(1, 4)),
    collect_expired=st.just(()),
    reopen=st.just(()),
    roots=st.just(()),
)
cramped = st.tuples(st.just("with_little_room"), st.integers(0, 500), writes)
damaged = st.tuples(
    st.just("damaged"), st.dictionaries(keys, st.sampled_from([25, 26, 30, 40, 41, 45, 48]), max_size=3), writes | reads
)


STEPS = st.lists(writes | writes | reads | others | cramped | damaged, max_size=25)


@settings(max_examples=40)
@given(STEPS)
def test_any_steps(pure: PureProcess, steps: list[Step]) -> None:
    compare(pure, [*steps, ("roots",), ("reopen",), ("roots",)])


LATE = ("tick", -5.0)  # the wall clock is behind the versions that are there
AFTER = ("set", b"a", b"again", None)


@pytest.mark.parametrize("expiry", [None, LATER_MS])
@pytest.mark.parametrize("size", [25, 40, 41, 48])
def test_a_record_of_the_base_that_was_cut_short(pure: PureProcess, expiry: int | None, size: int) -> None:
    """A write over it counts what is left of it out of the tree."""
    steps: list[Step] = [
        ("set", b"a", b"new", None),
        ("set", b"a", b"new", LATER_MS),
        ("put_made", b"a", b"made", NOON, None),
        ("put", 1, [(0, b"b", b"x"), (0, b"a", b"y"), (0, b"ab", b"z")], 0, b"", False, True),
        ("get_each", [b"a", b"b"], 100),
        ("increment_each", [b"a"], 1),
        ("delete", b"a"),
    ]
    for step in steps:
        for between in ((), (LATE,)):
            made = [("set", b"a", b"1", expiry), *[("checkpoint_now",)] * 3, *between]
            compare(pure, [*made, ("damaged", {b"a": size}, step), AFTER, ("roots",)])


def test_a_version_of_the_future_is_passed(pure: PureProcess) -> None:
    """The counter goes on from what `clock.after` has made of it, also over its end."""
    for counter in (5, 2**32 - 3, 2**32 - 2, 2**32 - 1):
        steps: list[Step] = [("count_from", counter), ("put_made", b"a", b"x", NOON + DAY_NS, None)]
        steps += [("set_batch", [(None, key, b"v") for key in (b"b", b"a", b"b", b"a", b"ab")]), ("roots",)]
        compare(pure, steps)


def test_a_version_that_has_none_above_it(pure: PureProcess) -> None:
    """Time ends there: the write is refused, the others are done."""
    batch = [(None, key, b"v") for key in (b"b", b"a", b"ab")]
    for op in (1, 0x81):
        steps: list[Step] = [("put_made", b"a", b"x", 2**64 - 1, None), ("put", op, batch, 0, b"", False, True)]
        assert compare(pure, [*steps, ("roots",)])[1] == "error"


def test_a_damaged_version_is_not_followed(pure: PureProcess) -> None:
    steps: list[Step] = [("put", 0x81, [(None, b"a", b"\xff" * 24 + b"\0" + bytes(17))], 0, b"", True, True)]
    compare(pure, [*steps, ("set", b"a", b"v", None), ("set", b"a", b"w", None), ("roots",)])


def test_every_state_of_a_key_follows_every_other(pure: PureProcess) -> None:
    """Live, about to expire, expired, deleted, purged, or only in a frozen memtable or the base."""
    states: list[list[Step]] = [
        [],
        [("set", b"a", b"1", None)],
        [("set", b"a", b"1", LATER_MS)],
        [("set", b"a", b"1", LATER_MS - 1)],
        [("set", b"a", b"1", 1)],
        [("set", b"a", b"1", NOW_MS + 1000), ("tick", 2.0), ("collect_expired",)],
        [("set", b"a", b"1", None), ("delete", b"a")],
        [("put_made", b"a", None, NOON - 1, None)],
        [("put_made", b"a", b"2", NOON - 1, LATER_MS)],
        [("set", b"a", b"1", None), ("put_made", b"a", None, NOON + 1, None)],
        [("truncate",)],
    ]
    for before in states:
        for moved in ([], [("freeze",)], [("checkpoint_now",)] * 3):
            steps: list[Step] = []
            for after in states:
                steps += [*before, *moved, *after, ("delete", b"a")]
            compare(pure, [*steps, ("roots",)])


def test_a_batch_that_is_cut_off_anywhere(pure: PureProcess) -> None:
    """The log has no more room in the middle of it, for any reason."""
    batch: Step = ("set_batch", [(None, b"k%d" % (number % 40), b"v" * number) for number in range(70)])
    for size in (0, 50, 51, 52, 100, 1000, 3000):
        compare(pure, [("with_little_room", size, batch), batch, ("commit_without_room", 0.5), ("roots",)])


def test_what_is_no_request_ends_a_batch(pure: PureProcess) -> None:
    """What comes before it is done, whether it is among the keys that are looked at ahead or not."""
    good = [(None, b"k%d" % number, b"v") for number in range(40)]
    what: list[Any] = [(), [], (None,), (None, b"k"), (None, b"k", b"v", b"more"), None, 5, (None, [b"k"], b"v")]
    for bad in what:
        for before in (0, 1, 5, 32, 40):
            for as_list in (True, False):
                items = [*good[:before], bad, *good[:2]]
                compare(pure, [("put", 1, items, 0, b"", False, as_list), ("roots",)])
