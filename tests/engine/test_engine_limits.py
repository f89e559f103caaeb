"""Every limit of the engine at its edge and one past it; what is refused has changed nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import engines
from fixtures.engines import NOON, Wall

from merklekv.engine.checkpoint.checkpointer import FROZEN_TABLES_MAX
from merklekv.engine.engine import Engine
from merklekv.engine.format import ENTRY, MAX_KEY_SIZE, MAX_VALUE_SIZE_LIMIT, OP_SET
from merklekv.engine.integers import INT64_MAX, INT64_MIN
from merklekv.engine.log import writer as log_module
from merklekv.engine.memtable import KEY_OVERHEAD
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.engine.record import (
    HEAD_SIZE,
    VERSION_SIZE,
    deletion_marker,
    make_record,
    op_id_of,
    timestamp_of,
    version_of,
)
from merklekv.errors import InvalidArgument, NotANumber, NumberOverflow, Shortage, Stalled, StorageFailed


def unchanged(engine: Engine, error: type[Exception], verb: Callable[[], object], match: str = ".") -> None:
    """The verb raises, and neither data nor log are other than before."""
    before = engines.everything(engine), engine.log.appended, engine.log.pending_size, engine.root()
    with pytest.raises(error, match=match):
        verb()
    assert (engines.everything(engine), engine.log.appended, engine.log.pending_size, engine.root()) == before


def test_keys(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    longest = b"\xff" * MAX_KEY_SIZE
    for key in (b"\x00", longest):
        engine.set(key, b"1")
        assert engine.increment(key, 1) == 2
        assert engine.append(key, b"3") == b"23"
        assert engine.prepend(key, b"1") == b"123"
        engine.mset([(key, b"5")])
        assert engine.get(key) == b"5"
        assert engine.exists(key)
    engines.checkpoint(engine)
    assert engines.values(engine) == {b"\x00": b"5", longest: b"5"}
    for key in (b"", longest + b"\xff"):
        verbs: list[Callable[..., object]] = [
            lambda key=key: engine.set(key, b""),
            lambda key=key: engine.increment(key, 1),
            lambda key=key: engine.append(key, b""),
            lambda key=key: engine.prepend(key, b""),
            lambda key=key: engine.mset([(b"fine", b""), (key, b"")]),
            lambda key=key: engine.rename(longest, key),
        ]
        for verb in verbs:
            unchanged(engine, InvalidArgument, verb, f"key of {len(key)} bytes: a key has 1 to 511 bytes")
        assert engine.get(key) is None
        assert engine.record(key) is None
        assert not engine.exists(key)
        assert not engine.delete(key)
        assert not engine.rename(key, b"k")
    assert engine.page(longest + b"\xff") == ([], None)
    assert engine.page(b"", longest + b"\xff") == ([], None)
    assert engine.delete(longest)


def test_a_value_that_a_lower_limit_forbids_is_not_renamed(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine("data", max_value_size=10)
    engine.set(b"k", b"v" * 10)
    engine.close()
    engine = make_engine("data", max_value_size=9)
    unchanged(engine, InvalidArgument, lambda: engine.rename(b"k", b"l"), "value of 10 bytes: more than max_value_size")
    assert engine.get(b"k") == b"v" * 10
    assert engine.delete(b"k")


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_values(make_engine: Callable[..., Engine], size: int) -> None:
    engine = make_engine(max_value_size=size)
    largest = b"v" * size
    engine.set(b"k", largest)
    assert engine.get(b"k") == largest
    engine.mset([(b"k", largest), (b"l", largest)])
    assert engine.append(b"k", b"") == engine.prepend(b"k", b"") == largest
    for verb in (
        lambda: engine.set(b"k", largest + b"v"),
        lambda: engine.mset([(b"m", b""), (b"k", largest + b"v")]),
        lambda: engine.append(b"k", b"v"),
        lambda: engine.prepend(b"k", b"v"),
    ):
        unchanged(
            engine, InvalidArgument, verb, f"value of {size + 1} bytes: more than max_value_size, which is {size}"
        )


def test_a_value_larger_than_a_memtable(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    value = b"v" * (3 * MIN_MEMTABLE_SIZE)
    engine.set(b"k", value)
    engine.commit()
    with pytest.raises(Stalled):
        engine.set(b"l", value)
    engine.checkpoint_now()
    engine.set(b"l", value)
    engines.checkpoint(engine)
    assert engines.values(engine) == {b"k": value, b"l": value}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        *[
            ({"memtable_size": given}, f"{given!r} is not allowed; give an int from 65536 to 4294967296, in bytes")
            for given in (MIN_MEMTABLE_SIZE - 1, (4 << 30) + 1, "64MiB", 65536.0, None, True, b"x")
        ],
        *[
            ({"max_value_size": given}, f"{given!r} is not allowed; give an int from 0 to {MAX_VALUE_SIZE_LIMIT}")
            for given in (-1, MAX_VALUE_SIZE_LIMIT + 1, "1", 1.5, None, False)
        ],
        *[
            ({"durability": given}, f"{given!r} is not allowed; give one of always, everysec, never")
            for given in ("allways", "Always", "", None, True, 1, ["always"], b"always")
        ],
        *[
            ({"checkpoint": given}, f"{given!r} is not allowed; give one of process, manual")
            for given in ("proces", "", None, False)
        ],
        *[
            ({"max_clock_drift_s": given}, f"{given!r} is not allowed; give seconds from 0 to 315360000")
            for given in (-1, -0.1, float("inf"), float("nan"), 315_360_001, "60", None, True)
        ],
        ({"memtable_size": 1 << 20_000}, "a number is not allowed; give an int from 65536"),
        ({"durability": "x" * 1000}, f"'{'x' * 399}... is not allowed"),
    ],
)
def test_settings_past_their_limits(make_engine: Callable[..., Engine], options: dict[str, Any], match: str) -> None:
    (name,) = options
    with pytest.raises(InvalidArgument) as caught:
        make_engine(**options)
    assert str(caught.value).startswith(f"{name} = ")
    assert match in str(caught.value)


@pytest.mark.parametrize("path", ["", "a\0b", b"data", None, 5, ["data"]])
def test_a_path_that_is_none(path: Any) -> None:
    with pytest.raises(InvalidArgument, match="is not allowed; give the name of a directory, as str or Path"):
        Engine(path, checkpoint="manual")


def test_settings_at_their_limits(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(memtable_size=MIN_MEMTABLE_SIZE, max_value_size=MAX_VALUE_SIZE_LIMIT)
    assert engine.max_value_size == MAX_VALUE_SIZE_LIMIT


@pytest.mark.parametrize(
    ("text", "amount", "total"),
    [
        (None, 5, 5),
        (None, INT64_MAX, INT64_MAX),
        (None, INT64_MIN, INT64_MIN),
        (b"0", 0, 0),
        (b"%d" % (INT64_MAX - 1), 1, INT64_MAX),
        (b"%d" % (INT64_MIN + 1), -1, INT64_MIN),
        (b"%d" % INT64_MAX, INT64_MIN, -1),
    ],
)
def test_numbers(make_engine: Callable[..., Engine], text: bytes | None, amount: int, total: int) -> None:
    engine = make_engine()
    if text is not None:
        engine.set(b"n", text)
    assert engine.increment(b"n", amount) == total
    assert engine.get(b"n") == b"%d" % total


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"-", b"+", b"--1", b"+-1", b" 1", b"1 ", b"1\n", b"1.0", b"1e3", b"0x1", b"1_0", b"one"),
        *(b"01", b"007", b"+1", b"-0", b"+0", b"00", b"-01", b"1\0"),
        *("\N{ARABIC-INDIC DIGIT ONE}".encode(), b"\xb2", b"0" * 20 + b"1", b"9" * 20, b"9" * 5000),
        *(b"%d" % (INT64_MAX + 1), b"%d" % (INT64_MIN - 1)),
    ],
)
def test_what_is_no_number(make_engine: Callable[..., Engine], text: bytes) -> None:
    engine = make_engine()
    engine.set(b"n", text)
    unchanged(engine, NotANumber, lambda: engine.increment(b"n", 1), "Value for key 'n' is not a valid number")


@pytest.mark.parametrize(
    ("text", "amount"),
    [(b"%d" % INT64_MAX, 1), (b"%d" % INT64_MIN, -1), (b"0", INT64_MAX + 1), (b"-1", INT64_MIN), (b"1", 10**400)],
)
def test_sums_that_overflow(make_engine: Callable[..., Engine], text: bytes, amount: int) -> None:
    engine = make_engine()
    engine.set(b"n", text)
    unchanged(engine, NumberOverflow, lambda: engine.increment(b"n", amount), "'n' would overflow 64 bits")


def test_what_is_not_bytes_changes_nothing(make_engine: Callable[..., Any]) -> None:
    engine = make_engine()
    engine.set(b"k", b"v")
    for verb in (
        lambda: engine.set("k", b"v"),
        lambda: engine.set(b"k", "v"),
        lambda: engine.set(b"k", None),
        lambda: engine.append(b"k", "v"),
        lambda: engine.set(bytearray(b"k"), b"v"),
    ):
        unchanged(engine, TypeError, verb)


def test_a_memtable_is_frozen_when_it_is_full(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    value = b"v" * (MIN_MEMTABLE_SIZE - KEY_OVERHEAD - 41 - 1 - 1)
    engine.set(b"k", value)
    engine.commit()
    assert engine.table.active.size == MIN_MEMTABLE_SIZE - 1
    assert not engine.table.frozen
    engine.set(b"k", value + b"v")
    engine.commit()
    assert len(engine.table.frozen) == 1


def test_a_segment_is_sealed_when_it_is_full(make_engine: Callable[..., Engine]) -> None:
    """Writing one key again and again fills the log, not the memtable."""
    engine = make_engine()
    while not engine.table.frozen:
        assert engine.log.position < MIN_MEMTABLE_SIZE
        engine.set(b"k", b"v" * 1000)
        engine.commit()
    assert engine.table.frozen[0].size < 2000


def fill_until_stalled(engine: Engine) -> int:
    """Writes until writes have to wait; how many bytes that took."""
    written = 0
    while not engine.gate.stalled:
        engine.set(b"k%d" % written, b"v" * 1000)
        engine.commit()
        written += 1000
    return written


def test_writes_wait_while_checkpoints_are_behind(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    assert MIN_MEMTABLE_SIZE * 2 < fill_until_stalled(engine) < MIN_MEMTABLE_SIZE * FROZEN_TABLES_MAX
    assert engine.makes_wait
    for verb in (
        lambda: engine.set(b"k", b""),
        lambda: engine.increment(b"n", 1),
        lambda: engine.append(b"k", b""),
        lambda: engine.mset([(b"k", b"")]),
        lambda: engine.delete(b"k0"),
        lambda: engine.rename(b"k0", b"k"),
        engine.truncate,
        lambda: engine.merge([(1, b"m", engines.record(b"m", b"", engines.NOON))], b"x"),
        lambda: engine.merge_truncation(engines.version(engines.NOON), b"x"),
    ):
        unchanged(engine, Stalled, verb, "checkpoints are behind")
    assert not engine.delete(b"missing")
    assert engine.get(b"k0") is not None
    assert not engine.wait_for_room(0.001)
    engine.checkpoint_now()
    assert not engine.gate.stalled
    assert engine.wait_for_room(0)
    engine.set(b"k", b"")


def test_a_batch_stops_before_the_first_that_is_refused(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_value_size=3)
    batch = [(b"SET", b"a", b"1"), (b"SET", b"b", b"22"), (b"SET", b"c", b"4444"), (b"SET", b"d", b"1")]
    assert engine.set_batch(batch) == 2
    assert engine.set_batch([(b"SET", b"", b"1")]) == 0
    assert engine.set_batch([]) == 0
    assert engines.values(engine) == {b"a": b"1", b"b": b"22"}


def test_a_batch_of_increments_ends_before_what_has_to_run_by_itself(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    engine.set(b"number", b"%d" % (INT64_MAX - 2))
    engine.set(b"word", b"v")
    engine.set(b"expires", b"1", engines.LATER_MS)
    assert engine.increment_batch([b"new", b"number", b"number", b"new", b"number", b"new"], 1) == [
        *(1, INT64_MAX - 1, INT64_MAX, 2)
    ]
    for last in (b"word", b"expires", b""):
        assert engine.increment_batch([b"new", last, b"new"], -1) == [engine.increment(b"new", 0)]
    assert engine.increment(b"new", 0) == -1


@pytest.mark.parametrize("size", [HEAD_SIZE - 8, HEAD_SIZE - 1, HEAD_SIZE])
def test_a_batch_of_increments_ends_before_a_record_of_the_base_that_damage_made_too_short(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    engine = make_engine()
    record = make_record(b"number", bytes(VERSION_SIZE), b"1")[:size]
    with monkeypatch.context() as patch:
        patch.setattr(engine.table.base, "get", {b"number": record}.get)
        assert engine.increment_batch([b"new", b"number", b"new"], 1) == [1]
    assert engines.values(engine) == {b"new": b"1"}


def test_a_batch_of_deletions_ends_before_the_first_that_is_refused(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    for key in (b"a", b"b", b"c"):
        engine.set(key, b"v")
    assert engine.delete_batch([b"a", b"a", b"", b"b"]) == [True, False, False, True]

    def full(size: int, urgent: bool) -> None:
        raise Shortage("disk full")

    engine.set(b"a", b"v")
    marker = deletion_marker(engine.record(b"a") or b"", 0)
    engine.log.urgent_room = engine.log.pending_size + ENTRY.size + len(b"a") + len(marker)
    monkeypatch.setattr(engine.log, "reserve", full)
    assert engine.delete_batch([b"a", b"c", b"b"]) == [True]
    assert engines.values(engine) == {b"c": b"v"}


def test_versions_of_a_batch_differ_and_follow_those_before(make_engine: Callable[..., Engine]) -> None:
    """All are of one moment, but for a key that has a later one."""
    engine = make_engine(wall_clock=Wall())
    engine.merge([(OP_SET, b"b", engines.record(b"b", b"", NOON + 5))], b"elsewhere")
    keys = [b"a", b"b", b"c", b"b", b"a"]
    assert engine.set_batch([(b"", key, b"%d" % number) for number, key in enumerate(keys)]) == len(keys)
    engine.set(b"d", b"5")
    assert engines.values(engine) == {b"a": b"4", b"b": b"3", b"c": b"2", b"d": b"5"}
    versions = [version_of(engine.record(key) or b"") for key in (b"a", b"b", b"c", b"d")]
    assert [timestamp_of(version) - NOON for version in versions] == [0, 7, 0, 0]
    assert len({op_id_of(version) for version in versions}) == 4
    assert versions[2] < versions[0] < versions[3]


def test_what_one_commit_can_hold(make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame says its length in 4 bytes; the limit is tried here at a size that fits into memory."""
    assert log_module.PAYLOAD_SIZE_MAX == 2**32 - 1
    monkeypatch.setattr(log_module, "PAYLOAD_SIZE_MAX", 1000)
    engine = make_engine()
    size = 1000 - 7 - 1 - 41
    unchanged(engine, InvalidArgument, lambda: engine.set(b"k", b"v" * (size + 1)), "1001 bytes in one commit: at most")
    unchanged(engine, InvalidArgument, lambda: engine.mset([(b"k", b"v" * 475)] * 2), "1048 bytes in one commit")
    engine.set(b"k", b"v" * size)
    engine.commit()
    assert engine.get(b"k") == b"v" * size


def test_after_closing_nothing_reaches_a_file(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    """The number of the log's file may be another file's by then."""
    engine = make_engine()
    engine.set(b"k", b"v")
    engine.close()
    engine.close()
    with (tmp_path / "other").open("w+b") as other:
        engine.set(b"k", b"late")
        with pytest.raises(StorageFailed, match="Bad file descriptor"):
            engine.commit()
        engine.close()
        assert other.read() == b""
