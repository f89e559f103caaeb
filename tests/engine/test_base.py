"""The base: leaves, counters and index are those of the records at every single commit."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from fixtures import engines
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.base import writer as writer_module
from merklekv.engine.base.environment import translate
from merklekv.engine.base.places import FIRST_PLACE, LAST_PLACE
from merklekv.engine.base.reader import META_SIZES, Base
from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.format import bucket_of
from merklekv.engine.record import expiry_place, purge_marker
from merklekv.engine.verify.check import check_base, check_directory
from merklekv.engine.verify.report import Report
from merklekv.engine.verify.scrub import Scrub
from merklekv.errors import Corruption, DiskFull, StorageFailed

names = st.integers(0, 15).map(lambda number: b"k%02d" % number) | st.just(b"\xff" * 511)
# Two keys whose hashes begin alike, so that their expiry places may be the same.
ALIKE = (b"alike-6398463", b"alike-17706105")
names |= st.sampled_from(ALIKE)
contents = st.none() | st.tuples(st.binary(max_size=5), st.sampled_from([None, 7, 8, 1 << 24, (1 << 63) - 1]))
batches = st.lists(st.tuples(st.dictionaries(names, contents, max_size=8), st.integers(0, 60)), max_size=8)


def violations(writer: BaseWriter) -> list[str]:
    """What the checker reports of the newest commit."""
    report = Report(print)
    with writer.snapshot() as view:
        check_base(Path("base"), view, report)
    return report.sentences()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[BaseWriter]:
    (tmp_path / "base").mkdir()
    with BaseWriter(tmp_path / "base") as base:
        yield base


@given(batches)
def test_every_commit_is_sound(drawn: list[tuple[dict[bytes, tuple[bytes, int | None] | None], int]]) -> None:
    """Batches of records, each followed by their index, and sometimes by a truncation version."""
    with pytest.MonkeyPatch.context() as patch, engines.directory() as path:
        patch.setattr(writer_module, "TRANSACTION_KEYS", 3)
        path.mkdir()
        model: dict[bytes, bytes] = {}
        with BaseWriter(path) as writer:
            for number, (batch, truncation_ts) in enumerate(drawn, 1):
                pairs = [
                    (key, engines.record(key, content and content[0], 10 * number, expiry=content and content[1]))
                    for key, content in sorted(batch.items())
                ]
                writer.begin_checkpoint(number)
                truncation = engines.version(truncation_ts)
                if truncation > writer.truncation:
                    for _ in writer.raise_truncation(truncation):
                        assert violations(writer) == []
                    model = {key: record for key, record in model.items() if record >= truncation}
                pairs = [(key, record) for key, record in pairs if record >= writer.truncation]
                added = writer.put(pairs)
                assert violations(writer) == []
                assert added == [key for key, _ in pairs if key not in model]
                assert writer.put(pairs) == []
                writer.index(sorted((bucket_of(key).to_bytes(2, "big"), key) for key in added))
                writer.finish(number, {})
                assert violations(writer) == []
                model.update(pairs)
        _read_back(path, model)


def _read_back(path: Path, model: dict[bytes, bytes]) -> None:
    base = Base(path)
    ordered = sorted(model.items())
    assert base.records_from(b"", None, 100, 10**6) == ordered
    heads = base.heads_from(b"", None, 4)
    assert [(key, head[:49]) for key, head in heads] == [(key, r[:49]) for key, r in ordered[:4]]
    places = sorted({place for key, record in ordered if (place := expiry_place(key, record))})
    found = base.expiries_from(FIRST_PLACE, LAST_PLACE, 100)
    assert [place for place in found if not base.is_shared(place) or place in places] == places
    for at, place in enumerate(found):
        assert base.expiries_from(place, LAST_PLACE, 2) == found[at + 1 : at + 3]
        assert base.expiries_from(FIRST_PLACE, place, 100) == found[: at + 1]
        for key in base.keys_at(place):
            assert key in model
    assert base.records_from(b"k05", b"k1", 100, 10**6) == [pair for pair in ordered if b"k05" <= pair[0] < b"k1"]
    assert base.records_from(b"\xff" * 511 + b"\x00", None, 100, 10**6) == []
    for key, record in ordered:
        assert base.get(key) == record
        assert key in base.current.keys(bucket_of(key))
    with base.snapshot() as view, view.txn.cursor(db=view.index) as cursor:
        listed = list(cursor)
    assert sorted(key for _, key in listed) == sorted(model)
    assert [name for name, _ in listed] == sorted(bucket_of(key).to_bytes(2, "big") for key in model)
    buckets = sorted((bucket_of(key), key) for key in model)
    assert base.index_key_from(0) == (buckets[0][1] if buckets else None)
    assert base.current.keys((buckets[-1][0] if buckets else 0) - 1 & 0xFFFF) == [
        key for bucket, key in buckets if bucket == (buckets[-1][0] - 1 & 0xFFFF)
    ]
    base.close()


def test_a_reader_sees_one_moment_until_it_refreshes(writer: BaseWriter, tmp_path: Path) -> None:
    """The writer of a base is another process; here it is the same data, copied."""
    writer.put([(b"k", engines.record(b"k", b"1", 5))])
    writer._env.copy(str(_made(tmp_path / "copy")))
    base = Base(tmp_path / "copy")
    assert (base.live, base.dead, base.newest) == (1, 0, engines.version(5))
    base.refresh()
    assert base.get(b"k") == engines.record(b"k", b"1", 5)
    base.close()


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_mark_of_a_checkpoint_stays_until_it_is_finished(writer: BaseWriter) -> None:
    assert not writer.begin_checkpoint(100)
    assert writer.begin_checkpoint(200)
    writer.finish(200, {})
    assert not writer.begin_checkpoint(300)
    assert writer.checkpoint_lsn == 200


def test_a_large_base_is_swept_in_parts(writer: BaseWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "TRANSACTION_KEYS", 10)
    keys = sorted([b"k%02d" % number for number in range(99)] + [b"\xff" * 511])
    writer.put([(key, engines.record(key, b"", number)) for number, key in enumerate(keys)])
    writer.begin_checkpoint(1)
    steps = sum(1 for _ in writer.raise_truncation(engines.version(40)))
    assert steps == 11
    assert violations(writer) == []
    assert writer.truncation == engines.version(40)


@pytest.mark.parametrize("work", ["replace", "mark", "sweep", "rebuild"])
def test_large_values_of_which_only_heads_are_needed_take_no_memory(writer: BaseWriter, work: str) -> None:
    """A transaction's keys may have had gigabytes of values, and all of a bucket's keys, too."""
    size, keys = 1 << 20, [b"k%02d" % number for number in range(40)]
    for number, key in enumerate(keys):
        writer.put([(key, engines.record(key, bytes(size), number))])
        writer.index([(bucket_of(key).to_bytes(2, "big"), key)])
    writer.begin_checkpoint(1)
    tracemalloc.start()
    try:
        if work == "replace":
            writer.put([(key, engines.record(key, b"small", 100)) for key in keys])
        elif work == "mark":
            writer.put([(key, purge_marker(engines.version(100))) for key in keys])
        elif work == "sweep":
            for _ in writer.raise_truncation(engines.version(20)):
                pass
        else:
            for _ in writer.rebuild({bucket_of(key): [key] for key in keys}):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * size
    assert work == "mark" or violations(writer) == []  # else the index lists keys that are gone, which a pass ends


def test_a_record_of_the_same_head_is_written_again_if_it_was_damaged(writer: BaseWriter) -> None:
    sound = engines.record(b"k", b"value", 1)
    writer.put([(b"k", sound[:-1] + b"X")])
    assert writer.put([(b"k", sound)]) == []
    with writer.snapshot() as view:
        assert view.txn.get(b"k") == sound


def test_what_lmdb_reports_becomes_what_a_person_can_act_on(tmp_path: Path) -> None:
    assert isinstance(translate(lmdb.DiskError("mdb_txn_commit", 28), tmp_path), DiskFull)
    assert isinstance(translate(lmdb.Error("mdb_put: No space left on device"), tmp_path), DiskFull)
    assert isinstance(translate(lmdb.CorruptedError("x"), tmp_path), Corruption)
    assert isinstance(translate(lmdb.InvalidError("x"), tmp_path), Corruption)
    assert isinstance(translate(lmdb.PanicError("x"), tmp_path), StorageFailed)
    assert isinstance(translate(lmdb.BadTxnError("x"), tmp_path), Corruption)
    assert str(tmp_path) in str(translate(lmdb.Error("x"), tmp_path))


def test_a_base_that_is_no_lmdb_file_is_damage(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(Corruption, match=f"{tmp_path}/data.mdb: is 14000 bytes long and does not begin with"):
        BaseWriter(tmp_path)


@pytest.mark.parametrize("name", META_SIZES)
def test_meta_of_a_wrong_size_is_damage(tmp_path: Path, name: bytes) -> None:
    engines.open_engine(tmp_path / "data").close()
    base = engines.damaged(tmp_path / "data") / "base"
    with lmdb.open(str(base), max_dbs=5) as environment:
        meta = environment.open_db(b"meta", create=False)
        with environment.begin(write=True, db=meta) as transaction:
            transaction.put(name, b"x")
    with pytest.raises(Corruption, match=f"{base}: {name.decode()} in meta has not {META_SIZES[name]} bytes"):
        engines.open_engine(tmp_path / "data")


def test_a_truncation_of_a_time_that_no_clock_shows_is_damage(tmp_path: Path) -> None:
    """What is written next would have to be later."""
    engines.open_engine(tmp_path / "data").close()
    data = engines.damaged(tmp_path / "data")
    with lmdb.open(str(data / "base"), max_dbs=5) as environment:
        meta = environment.open_db(b"meta", create=False)
        with environment.begin(write=True, db=meta) as transaction:
            transaction.put(b"truncation", b"\xff" * 24)
    with pytest.raises(Corruption, match="of a time that no clock shows"):
        engines.open_engine(data)
    assert any("truncation in meta: the version is 1844" in problem for problem in check_directory(data))


def test_a_record_without_its_whole_head_is_read_as_a_damaged_one(tmp_path: Path) -> None:
    """The keys around it are read, and a write replaces it."""
    engine = engines.open_engine(tmp_path / "data")
    for key in (b"a", b"b", b"c", b"d"):
        engine.set(key, b"value")
    engines.checkpoint(engine)
    engine.close()
    base = engines.damaged(tmp_path / "data") / "base"
    with lmdb.open(str(base), max_dbs=6) as environment:
        records = environment.open_db(b"records", create=False)
        with environment.begin(write=True, db=records) as transaction:
            for key in (b"b", b"c"):
                transaction.put(key, engines.version(engines.NOON))
    engine = engines.open_engine(tmp_path / "data")
    assert list(engines.everything(engine)) == [b"a", b"b", b"c", b"d"]
    assert [engine.get(key) for key in (b"a", b"b", b"d")] == [b"value", b"", b"value"]
    assert engine.get_batch([(b"MGET", b"b"), (b"MGET", b"d")], 1 << 20) == [b"", b"value"]
    assert [damage.key for damage in Scrub(engine).steps() if damage and damage.lost] == [b"b", b"c"]
    engine.set(b"b", b"new")
    engine.delete(b"c")
    engines.checkpoint(engine)
    assert engines.values(engine) == {b"a": b"value", b"b": b"new", b"d": b"value"}
    engine.close()


def test_leaves_of_a_wrong_length_are_damage(tmp_path: Path) -> None:
    """A tree made of them would be shifted, and a write in the last buckets would fail half way."""
    engine = engines.open_engine(tmp_path / "data")
    engine.set(b"key", b"value")
    engine.checkpoint_now()
    engine.close()
    base = engines.damaged(tmp_path / "data") / "base"
    with lmdb.open(str(base), max_dbs=5) as environment:
        leaves = environment.open_db(b"leaves", create=False)
        with environment.begin(write=True, db=leaves) as transaction, transaction.cursor() as cursor:
            cursor.first()
            transaction.put(cursor.key(), cursor.value()[:24])
    with pytest.raises(Corruption, match=f"{base}: the leaves of inner node .* have 24 bytes"):
        engines.open_engine(tmp_path / "data")


def test_space_counts_the_pages_that_a_copy_would_have(tmp_path: Path) -> None:
    """Many keys to a bucket, large values, deletions: what is used is what LMDB's compacting copy writes."""
    key_of = b"%03d".__mod__
    path, copy = tmp_path / "base", tmp_path / "copy"
    path.mkdir()
    copy.mkdir()
    with BaseWriter(path) as writer:
        pairs = [(key_of(n) + b"k" * 500, engines.record(b"", b"v" * 40 * n, n + 1)) for n in range(1000)]
        added = writer.put(pairs)
        writer.index([(b"\x00\x07", key) for key in added])
        before = (path / "data.mdb").stat().st_size
        assert before > 20 << 20
        for _ in writer.raise_truncation(engines.version(800)):
            pass
        writer.finish(1, {})
    base = Base(path)
    used, free = base.space
    assert 0 < used < before / 2 < free
    assert used + free == (path / "data.mdb").stat().st_size
    base.current.txn.abort()  # as another thread does that refreshes at this moment
    assert base.space == (used, free)
    base.close()
    with lmdb.open(str(path), readonly=True, max_dbs=5) as environment:
        environment.copy(str(copy), compact=True)
    assert (copy / "data.mdb").stat().st_size == used
