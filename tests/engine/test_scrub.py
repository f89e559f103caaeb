"""The scrub finds each kind of damage in a node that runs, and what it asks for makes the node sound again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from fixtures import engines
from fixtures.engines import NOON
from fixtures.records import BODY_BYTE, DIGEST_BYTE, FLAGS_BYTE

from merklekv.engine.base.environment import DATABASES, open_database
from merklekv.engine.base.reader import Base
from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS, bucket_of
from merklekv.engine.record import TOMBSTONE, VERSION_SIZE, digest_of
from merklekv.engine.verify import scrub
from merklekv.engine.verify.check import check_directory, check_engine
from merklekv.engine.verify.scrub import Damage, Scrub, fits

Make = Callable[..., Engine]
KEY = b"k05"
DEAD = b"k03"
PEER = b"peer"


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Records in the base, live and dead, and more in memtables."""
    with engines.directory() as path:
        engine = engines.filled(engines.open_engine(path))
        yield engine
        engine.close()


@contextmanager
def base_of(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """A write transaction of a closed base; call it with a name for a database."""
    with lmdb.open(str(path / "base"), max_dbs=len(DATABASES)) as env:
        handles = {name: open_database(env, name) for name in DATABASES}
        with env.begin(write=True) as txn:
            yield lambda name: txn.cursor(db=handles[name])


def reopened(engine: Engine, alter: Callable[[Callable[[bytes], Any]], None], **options: Any) -> Engine:
    """The node again, after its base was altered behind its back."""
    path = engine.directory.path
    engine.close()
    with base_of(path) as database:
        alter(database)
    return engines.open_engine(path, **options)


def flipped(data: bytes, position: int, mask: int = 0x10) -> bytes:
    """Data with some bits of a byte flipped."""
    return data[:position] + bytes((data[position] ^ mask,)) + data[position + 1 :]


def flip_record(key: bytes, position: int, mask: int = 0x10) -> Callable[[Callable[[bytes], Any]], None]:
    """Flips bits of a record of the base."""

    def alter(database: Callable[[bytes], Any]) -> None:
        cursor = database(b"records")
        cursor.put(key, flipped(cursor.get(key), position, mask))

    return alter


def found_in(engine: Engine) -> list[Damage]:
    return [damage for damage in Scrub(engine).steps() if damage is not None]


def heal(engine: Engine, peer: dict[bytes, bytes]) -> list[Damage]:
    """Does what the scrub asks for, with what another node has; what it found."""
    found = found_in(engine)
    for damage in found:
        record = peer.get(damage.key)
        if damage.lost and record is not None and fits(damage, record):
            assert engine.replace(damage.key, damage.stored, record, PEER)
        elif damage.lost and damage.stray:
            assert engine.replace(damage.key, damage.stored, None, PEER)
        elif not damage.lost and damage.bucket is not None:
            engine.repair(damage.bucket, damage.key)
    engine.commit()
    return found


def is_sound(engine: Engine) -> None:
    engines.checkpoint(engine)
    engines.checkpoint(engine)
    assert found_in(engine) == []
    assert check_engine(engine) == []


def test_a_sound_node_has_nothing_to_report(engine: Engine) -> None:
    one = Scrub(engine)
    assert not any(one.steps())
    assert one.read == 20, "the records of the base"


def test_an_empty_node_has_nothing_to_report(make_engine: Make) -> None:
    assert found_in(make_engine()) == []


@pytest.mark.parametrize("key", [KEY, DEAD])
@pytest.mark.parametrize("position", [0, 8, VERSION_SIZE - 1, FLAGS_BYTE, DIGEST_BYTE, BODY_BYTE - 1, -1])
@pytest.mark.parametrize("mask", [0x01, 0x04, 0x80])
def test_a_flipped_bit_anywhere_in_a_record(engine: Engine, key: bytes, position: int, mask: int) -> None:
    """It is found, and a peer's copy takes its place; so does it when the node goes down before that is merged."""
    peer, root = engines.everything(engine), engine.root()
    counts = engine.live_count, engine.tombstone_count
    for is_cut_short in (False, True):
        engine = reopened(engine, flip_record(key, position, mask))
        found = heal(engine, peer)
        assert [damage.key for damage in found if damage.lost] == [key]
        assert f"key {key!r}" in found[0].problem
        assert engine.record(key) == peer[key]
        if is_cut_short:
            engine.close()
            engine = engines.open_engine(engine.directory.path)
            assert (engine.live_count, engine.tombstone_count) == counts
            assert engine.root() == root
        is_sound(engine)
        assert engines.everything(engine) == peer
        assert engine.root() == root
        assert (engine.live_count, engine.tombstone_count) == counts


@pytest.mark.parametrize("mask", [0x04, 0x80])
def test_a_write_over_a_record_that_seems_to_be_from_far_away(engine: Engine, mask: int) -> None:
    """It does not follow there, nor do later ones: other nodes would refuse them all, for decades."""
    engine = reopened(engine, flip_record(KEY, 0, mask))
    for _ in range(2):
        engine.set(KEY, b"anew")
        engine.set(b"another", b"")
        engine.commit()
        assert all(engine.time_gate.admits_version(engine.record(key) or b"") for key in (KEY, b"another"))
        is_sound(engine)
        engine = reopened(engine, lambda database: None)
    assert engine.get(KEY) == b"anew"


def test_a_write_over_a_damaged_value_beats_it_whatever_the_clock_says(tmp_path: Path) -> None:
    """Also if the wall has been set back: other nodes have that value, and its version."""
    now = NOON + 2 * engines.DAY_NS
    engine = engines.open_engine(tmp_path / "data", wall_clock=lambda: now)
    engine.set(KEY, b"value")
    engines.checkpoint(engine)
    engine.table.base.close()  # one process cannot open it twice
    with base_of(tmp_path / "data") as database:
        flip_record(KEY, -1)(database)
    engine.table.base = Base(engine.directory.base)
    before = engine.record(KEY) or b""
    now = NOON
    engine.set(KEY, b"anew")
    assert (engine.record(KEY) or b"") > before
    is_sound(engine)
    engine.close()


def test_two_damaged_records_of_one_bucket(make_engine: Make) -> None:
    engine = make_engine()
    numbers = iter(range(10**6))
    keys = [key for key in (b"%d" % number for number in numbers if number < 300_000) if bucket_of(key) == 7][:3]
    for key in keys:
        engine.set(key, b"v")
    engines.checkpoint(engine)
    peer, root = engines.everything(engine), engine.root()
    for key in keys[:2]:
        engine = reopened(engine, flip_record(key, DIGEST_BYTE))
    first, second = found_in(engine)
    assert (first.original, second.original) == (b"", b"")
    assert engine.replace(first.key, first.stored, peer[first.key], PEER)
    engines.checkpoint(engine)  # the leaf goes by what is stored now: one record is damaged still
    heal(engine, peer)
    is_sound(engine)
    assert engine.root() == root


def test_what_may_take_the_place_of_a_lost_record() -> None:
    damaged = flipped(engines.record(KEY, b"value", NOON), -1)
    damage = Damage("", bucket_of(KEY), KEY, True, damaged, record=damaged)
    assert fits(damage, engines.record(KEY, b"value", NOON)), "the same version"
    assert fits(damage, engines.record(KEY, b"newer", NOON + 1))
    assert not fits(damage, engines.record(KEY, b"older", NOON - 1)), "what is damaged may be here alone"
    assert not fits(damage, damaged)
    assert not fits(damage, engines.record(b"other", b"value", NOON))
    damage = damage._replace(record=flipped(engines.record(KEY, b"value", NOON), 0, 0x20))  # seems newer than it is
    assert fits(damage, engines.record(KEY, b"value", NOON)), "its own digest says so"
    assert not fits(damage, engines.record(KEY, b"older", NOON - 1))
    assert fits(damage, engines.record(KEY, b"newer", NOON + 1)), "newer than it was"
    damage = damage._replace(record=flipped(engines.record(KEY, b"value", NOON | 0x80), 7, 0x80))
    assert not fits(damage, engines.record(KEY, b"between", NOON | 0x40)), "newer than it seems, older than it was"
    assert fits(damage, engines.record(KEY, b"newer", NOON | 0x81))
    damage = damage._replace(stored=None, record=flipped(engines.record(KEY, b"value", NOON), 0, 0x10))
    assert not fits(damage, engines.record(KEY, b"older", NOON - 1)), "it seems to be older than the truncation version"
    seems_newer = flipped(engines.record(KEY, b"value", NOON), 0, 0x20)
    damage = damage._replace(stored=seems_newer, record=flipped(seems_newer, DIGEST_BYTE))
    assert not fits(damage, engines.record(KEY, b"value", NOON))
    original = engines.record(KEY, b"value", NOON)
    assert fits(damage._replace(original=digest_of(original)), original), "the leaf says so"
    assert fits(damage._replace(record=b""), engines.record(KEY, b"older", NOON - 1)), "there is nothing to lose"


def test_the_leaf_tells_what_a_record_was(engine: Engine) -> None:
    """Version and digest are both damaged: only the sum of the bucket still knows the record."""
    peer = engines.everything(engine)
    engine = reopened(engine, flip_record(KEY, 0, 0x20))
    engine = reopened(engine, flip_record(KEY, DIGEST_BYTE))
    (damage,) = heal(engine, peer)
    assert damage.original == digest_of(peer[KEY])
    assert engine.record(KEY) == peer[KEY]
    is_sound(engine)


def test_damage_without_a_peer_is_reported_in_each_pass(engine: Engine) -> None:
    engine = reopened(engine, flip_record(KEY, DIGEST_BYTE))
    engines.damaged(engine.directory.path)
    root = engine.root()
    for _ in range(2):
        (damage,) = heal(engine, {})
        assert damage.lost
        engines.checkpoint(engine)
    assert engine.root() == root, "the leaf bears witness of what was there"


def test_a_newer_record_of_a_peer_takes_the_place_as_in_a_merge(engine: Engine) -> None:
    peer = engines.everything(engine)
    peer[KEY] = engines.record(KEY, None, NOON + 10**9)
    engine = reopened(engine, flip_record(KEY, -1))
    dead = engine.tombstone_count
    heal(engine, peer)
    assert engine.get(KEY) is None
    is_sound(engine)
    assert engine.tombstone_count == dead + 1
    engine.raise_gc_horizon(NOON + 10**9)
    while engine.collect_tombstones():
        pass
    assert engine.record(KEY) is None


def test_nothing_is_replaced_that_has_changed_since(engine: Engine) -> None:
    peer = engines.everything(engine)
    engine = reopened(engine, flip_record(KEY, -1))
    (damage,) = found_in(engine)
    engine.set(KEY, b"newer")
    assert not engine.replace(KEY, damage.stored, peer[KEY], PEER)
    assert engine.get(KEY) == b"newer"
    for stored in (None, peer[KEY]):
        assert not engine.replace(KEY, stored, peer[KEY], PEER)
    is_sound(engine)


def test_what_the_floor_has_killed_takes_no_place(engine: Engine) -> None:
    peer = engines.everything(engine)
    engine.truncate()
    engines.checkpoint(engine)
    assert not engine.replace(KEY, None, peer[KEY], PEER)
    assert not engine.replace(KEY, None, flipped(peer[KEY], -1), PEER), "nor does what is not sound"
    assert engine.live_count == 0


def test_damage_behind_a_newer_record_needs_no_peer(engine: Engine) -> None:
    root = engine.root()
    engine = reopened(engine, flip_record(b"k01", DIGEST_BYTE))
    (damage,) = heal(engine, {})
    assert not damage.lost
    assert "no reader finds it" in damage.problem
    is_sound(engine)
    assert engine.root() == root


def test_flags_that_rotted_do_not_end_checkpoints(make_engine: Make) -> None:
    """A live record that looks deleted is written over: there is one tombstone less than none."""
    engine = make_engine()
    engine.set(KEY, b"value")
    engines.checkpoint(engine)
    engine = reopened(engine, flip_record(KEY, FLAGS_BYTE, TOMBSTONE))
    engine.set(KEY, b"newer")
    engines.checkpoint(engine)
    assert engine.get(KEY) == b"newer"
    heal(engine, {})
    is_sound(engine)
    engine.close()


def test_a_list_of_tombstones_that_is_too_long_does_not_end_a_repair_elsewhere(make_engine: Make) -> None:
    """A tombstone that looks alive is written over: its place in the list stays until its bucket is repaired."""
    engine = make_engine()
    engine.join()
    engine.set(KEY, b"value")
    engine.delete(KEY)
    engines.checkpoint(engine)
    engine = reopened(engine, flip_record(KEY, FLAGS_BYTE, TOMBSTONE))
    engine.set(KEY, b"newer")
    engine.delete(KEY)
    engines.checkpoint(engine)
    elsewhere = next(bucket for bucket in range(BUCKETS) if bucket != bucket_of(KEY))
    engine.repair(elsewhere)
    engine.commit()
    engines.checkpoint(engine)
    heal(engine, {})
    is_sound(engine)
    assert (engine.live_count, engine.tombstone_count) == (0, 1)
    engine.close()


@pytest.mark.parametrize("is_told", [True, False], ids=["gone", "under another key"])
def test_a_record_that_is_gone(engine: Engine, is_told: bool) -> None:
    """Its key is listed still.  A bit flipped in the key itself leaves a record that nothing knows of."""
    peer, root = engines.everything(engine), engine.root()

    def alter(database: Callable[[bytes], Any]) -> None:
        cursor = database(b"records")
        record = cursor.get(KEY)
        cursor.delete()
        if not is_told:
            cursor.put(b"k\x105", record)

    engine = reopened(engine, alter)
    found = heal(engine, peer)
    assert {damage.key for damage in found if damage.lost} == ({KEY} if is_told else {KEY, b"k\x105"})
    assert next(damage for damage in found if damage.key == KEY).original == digest_of(peer[KEY])
    is_sound(engine)
    assert engines.everything(engine) == peer
    assert engine.root() == root


def alterations() -> dict[str, tuple[str, str, Callable[[Any], None]]]:
    """What may be wrong beside the records: the database, what is said of it, and how it is done."""
    listed = bucket_of(KEY).to_bytes(2, "big")

    def flip_leaf(cursor: Any) -> None:
        cursor.first()
        cursor.put(cursor.key(), flipped(cursor.value(), bucket_of(KEY) % 256 * 24 + 3))

    def flip_counter(name: bytes) -> Callable[[Any], None]:
        return lambda cursor: cursor.put(name, flipped(cursor.get(name), 7))

    def unlist(cursor: Any) -> None:
        cursor.set_key_dup(listed, KEY)
        cursor.delete()

    def unlist_first(cursor: Any) -> None:
        cursor.first()
        cursor.delete()

    return {
        "leaf": ("leaves", "the base: leaf ", flip_leaf),
        "live": ("meta", "the base: the counter live is", flip_counter(b"live")),
        "dead": ("meta", "the base: the counter dead is", flip_counter(b"dead")),
        "newest": ("meta", "the newest version is said to be", lambda cursor: cursor.put(b"newest", bytes(24))),
        "unlisted": ("index", "is not listed in the index", unlist),
        "listed without a record": ("index", "has no record", lambda cursor: cursor.put(b"\0\1", b"none")),
        "listed in another bucket": ("index", "", lambda cursor: cursor.put(b"\0\1", KEY)),
        "tombstone unlisted": ("tombstones", "is not in the list of tombstones", unlist_first),
        "tombstone listed": ("tombstones", "that is not there", lambda cursor: cursor.put(bytes(23) + b"\1", KEY)),
        "expiry unlisted": ("expiries", "is not in the list of expiries", unlist_first),
        "expiry listed": ("expiries", "which no record has", lambda cursor: cursor.put(bytes(5), b"\0\0\1" + bytes(6))),
    }


@pytest.mark.parametrize("name", alterations())
def test_what_is_derived_is_derived_anew(engine: Engine, name: str) -> None:
    peer, root = engines.everything(engine), engine.root()
    counts = engine.live_count, engine.tombstone_count
    database, problem, change = alterations()[name]
    engine = reopened(engine, lambda open_database: change(open_database(database.encode())))
    found = heal(engine, {})
    assert found
    assert not any(damage.lost for damage in found)
    assert any(problem in damage.problem for damage in found), found
    is_sound(engine)
    assert engines.everything(engine) == peer
    assert engine.root() == root
    assert (engine.live_count, engine.tombstone_count) == counts


def test_expiries_are_looked_at_in_slices_as_short_as_can_be(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "PLACES_S", -1.0)  # one in each
    last = b"\x7f" + bytes(4)
    engine = reopened(engine, lambda open_database: open_database(b"expiries").put(last, bytes(9)))
    assert any("which no record has" in damage.problem for damage in heal(engine, {}))
    is_sound(engine)


def test_wrong_memory_over_a_sound_base(engine: Engine) -> None:
    root = engine.root()
    engine.table.tree.move(KEY, 1 << 6, 0)
    engine.table.live_count += 1
    engine.table.tombstone_count -= 2
    engine.table.records[b"active"] = flipped(engine.table.records[b"active"], DIGEST_BYTE)
    problems = [damage.problem for damage in heal(engine, {})]
    for what in ("memory: leaf ", "memory, key b'active': ", "memory: the number of live", "memory: the number of tom"):
        assert any(problem.startswith(what) for problem in problems), problems
    is_sound(engine)
    assert engine.root() == root


def test_what_lmdb_reports_is_reported_and_the_rest_looked_at(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def page(*_: object) -> None:
        raise lmdb.CorruptedError("mdb_get: MDB_CORRUPTED")

    monkeypatch.setattr(Scrub, "_page", page)
    engine.table.live_count += 1
    pages, count = found_in(engine)
    assert "LMDB reports damage: mdb_get: MDB_CORRUPTED" in pages.problem
    assert pages.bucket is None
    assert "live keys" in count.problem
    engine.table.live_count -= 1


def test_a_key_that_is_not_in_order_is_reported(engine: Engine) -> None:
    """A bit that flips in a key makes LMDB lose it; the records behind it are scrubbed all the same."""
    peer = engines.everything(engine)
    path = engines.damaged(engine.directory.path)
    engine.close()
    data = path / "base" / "data.mdb"
    contents = data.read_bytes()
    at = contents.find(KEY + peer[KEY])
    while at >= 0:
        engines.flip(data, at, 0x10)
        at = contents.find(KEY + peer[KEY], at + 1)
    engine = engines.open_engine(path)
    stray, gone = found_in(engine)
    assert "key b'{05': the key is damaged and not in order" in stray.problem
    assert stray.bucket is None
    assert (gone.key, gone.lost) == (KEY, True)


def test_a_repair_is_in_the_log_until_the_base_has_it(engine: Engine) -> None:
    """Killed before the merge, the node derives at its start what it was asked to."""
    path = engine.directory.path
    alter = alterations()["leaf"][2]
    root = engine.root()
    engine = reopened(engine, lambda database: alter(database(b"leaves")))
    assert engine.root() != root
    heal(engine, {})
    engine.close()
    assert check_directory(path) != []
    engine = engines.open_engine(path)
    assert engine.root() == root
    is_sound(engine)


def test_a_tombstone_of_a_peer_is_kept_as_one(engine: Engine) -> None:
    peer = engines.everything(engine)
    engine = reopened(engine, flip_record(DEAD, FLAGS_BYTE, TOMBSTONE))
    assert engine.exists(DEAD)
    heal(engine, peer)
    assert not engine.exists(DEAD)
    is_sound(engine)
