"""Ordered pages over base, frozen memtables and the active one equal those of a sorted dict."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
from fixtures import engines
from fixtures.engines import NOON
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine import memtable as memtable_module
from merklekv.engine.engine import Engine
from merklekv.engine.record import RECORD_OVERHEAD, is_live
from merklekv.engine.table import HEADS_ONLY

LONG = b"\xff" * 511  # the last key there can be
keys = st.sampled_from(
    [b"\x00", b"\x00\x00", b"a", b"a\x00", b"aa", b"ab", b"b", b"\xfe\xff", b"\xff", b"\xff\xff", LONG]
)
layers = st.lists(st.dictionaries(keys, st.none() | st.binary(max_size=30), max_size=8), min_size=1, max_size=4)
prefixes = st.sampled_from([b"", b"\x00", b"a", b"aa", b"ab", b"b", b"\xff", b"\xff\xff", LONG, LONG + b"\xff", b"zz"])
afters = st.none() | keys | st.sampled_from([b"", b"a\x00\x00", b"zz", LONG + b"\x00"])


def fill(
    engine: Engine, drawn: list[dict[bytes, bytes | None]], base: bool, truncated_at: int | None
) -> dict[bytes, bytes]:
    """Writes each dict into a layer of its own, the first one into the base; returns what there should be."""
    model: dict[bytes, bytes] = {}
    wall = NOON
    for depth, layer in enumerate(drawn):
        if depth:
            engines.freeze(engine)
        if depth == 1 and base:
            engine.checkpoint_now()
        for key, value in layer.items():
            wall += 1
            record = engines.record(key, value, wall)
            engine.merge([(1, key, record)], b"elsewhere")
            model[key] = record
        if truncated_at == depth and engine.merge_truncation(engines.version(wall - 1), b"elsewhere"):
            model = {key: record for key, record in model.items() if record >= engine.truncation}
    engine.commit()
    return model


@given(layers, st.booleans(), st.none() | st.integers(0, 3), st.lists(st.tuples(prefixes, afters, st.integers(1, 9))))
def test_pages_are_slices_of_the_sorted_whole(
    drawn: list[dict[bytes, bytes | None]],
    base: bool,
    truncated_at: int | None,
    queries: list[tuple[bytes, bytes | None, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch, engines.fresh_engine() as engine:
        patch.setattr(memtable_module, "SLICE_KEYS", 3)
        model = fill(engine, drawn, base, truncated_at)
        assert {key: engine.record(key) for key in model} == model
        for prefix, after, limit in [(b"", None, 1), (b"", None, 100), *queries]:
            _follow_keys(engine, model, prefix, after, limit)
            _follow_records(engine, model, prefix, after, limit)


def _follow_keys(engine: Engine, model: dict[bytes, bytes], prefix: bytes, after: bytes | None, limit: int) -> None:
    """Page after page, by keys."""
    expected = [key for key in sorted(model) if key.startswith(prefix) and key > (after or b"") and is_live(model[key])]
    found: list[bytes] = []
    while True:
        page, following = engine.page(prefix, after, limit)
        assert len(page) <= limit
        found += page
        if following is None:
            break
        assert following > (after or b"") or not page, "goes forward, or prepares a memtable"
        after = following
    assert found == expected


def _follow_records(engine: Engine, model: dict[bytes, bytes], prefix: bytes, after: bytes | None, limit: int) -> None:
    """Page after page, by bytes."""
    expected = [(key, model[key]) for key in sorted(model) if key.startswith(prefix) and key > (after or b"")]
    max_bytes = limit * 25
    found: list[tuple[bytes, bytes]] = []
    while True:
        page, after = engine.records_page(prefix, after, 100, max_bytes)
        assert sum(len(record) for _, record in page[:-1]) < max_bytes
        found += page
        if after is None:
            break
    assert found == expected


@given(layers, st.booleans())
def test_a_digest_of_a_prefix_sums_up_what_is_under_it(drawn: list[dict[bytes, bytes | None]], base: bool) -> None:
    with engines.fresh_engine() as engine, engines.fresh_engine() as other:
        model = fill(engine, drawn, base, None)
        other.merge([(1, key, record) for key, record in model.items()], b"x")  # all in one memtable
        for prefix in (b"", b"a", b"\xff", b"zz"):
            assert _digest(engine, prefix) == _digest(other, prefix)
            there = {key: record for key, record in model.items() if key.startswith(prefix)}
            assert (_digest(engine, prefix) == bytes(32)) == (not there)
        changed = next(iter(model), None)
        if changed is not None:
            before = _digest(other, changed)
            other.set(changed, b"changed")
            assert _digest(other, changed) != before


def _digest(engine: Engine, prefix: bytes) -> bytes:
    steps = engine.prefix_digest(prefix)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            digest: bytes = end.value
            return digest


def test_a_page_of_heads_carries_no_more_of_a_value_than_an_expiry_is_long() -> None:
    with engines.fresh_engine() as engine:
        engine.set(b"k", b"x" * 1000)
        engines.checkpoint(engine)
        pairs, _ = engine.records_page(b"", b"", 10, max_bytes=HEADS_ONLY)
        assert [(key, len(head)) for key, head in pairs] == [(b"k", RECORD_OVERHEAD)]


def test_a_page_that_is_cut_by_its_size_goes_on_where_it_was_cut() -> None:
    with engines.fresh_engine() as engine:
        names = [b"%0500d" % number for number in range(50)]
        for name in names:
            engine.set(name, b"")
        engines.checkpoint(engine)
        found: list[bytes] = []
        after: bytes | None = b""
        while after is not None:
            page, after = engine.records_page(b"", after, 1000, 2000)
            found += [key for key, _ in page]
        assert found == names


def test_any_live_key_may_be_the_random_one() -> None:
    with engines.fresh_engine() as engine:
        assert engine.random_key() is None
        for number in range(6):
            engine.set(b"k%d" % number, b"")
            if number % 2:
                engines.freeze(engine)
                engine.delete(b"k%d" % (number - 1))
            if number == 2:
                engines.checkpoint(engine)
        left = set(engines.values(engine))
        assert {engine.random_key() for _ in range(500)} == left
        engine.truncate()
        assert engine.random_key() is None
        engine.set(b"last", b"")
        assert engine.random_key() == b"last"


def test_the_one_live_key_among_dead_ones_is_found() -> None:
    with engines.fresh_engine() as engine:
        for number in range(1000):
            engine.set(b"k%03d" % number, b"")
            engine.delete(b"k%03d" % number)
        engine.set(b"k500", b"")
        engines.checkpoint(engine)
        assert {engine.random_key() for _ in range(20)} == {b"k500"}


def test_the_search_for_the_one_live_key_lets_others_at_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with engines.fresh_engine() as engine:
        engine.join()
        for number in range(1000):
            engine.set(b"k%03d" % number, b"", 1)
        engine.set(b"last", b"")
        was_free: list[bool] = []
        page = engine.table.page

        def try_lock() -> None:
            was_free.append(engine.lock.acquire(blocking=False))
            if was_free[-1]:
                engine.lock.release()

        def watched(*arguments: Any) -> Any:
            other = Thread(target=try_lock)
            other.start()
            other.join()
            return page(*arguments)

        monkeypatch.setattr(engine.table, "page", watched)
        monkeypatch.setattr("merklekv.engine.table.random.choice", lambda tables: engine.table.active)
        monkeypatch.setattr("merklekv.engine.table.random.randrange", lambda end: 0)
        monkeypatch.setattr("merklekv.engine.table.random.random", lambda: 0.0)
        assert engine.random_key() == b"last"
        assert len(was_free) > 1
        assert all(was_free)
