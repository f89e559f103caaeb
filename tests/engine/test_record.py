"""The record codec: what it makes reads back, and it alone knows where the fields are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from fixtures import engines
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine import record as codec
from merklekv.engine.format import MAX_KEY_SIZE
from merklekv.engine.record import HEAD_SIZE, RECORD_OVERHEAD, VERSION_SIZE, is_sound, make_record, show_version
from merklekv.engine.verify import reference
from merklekv.engine.verify.report import record_violations

ROOT = Path(__file__).parent.parent.parent
OFFSETS = {"FLAGS_AT", "DIGEST_AT", "VALUE_AT"}
SIZES = {"VERSION_SIZE", "HEAD_SIZE", "RECORD_OVERHEAD"}
KNOW_OFFSETS = {
    "record.py",
    "base/reader.py",
    "base/writer.py",
    "put.py",
    "table.py",
}  # of merklekv/engine: the codec, the base, the table and its hot loops
VERIFY = Path("merklekv/engine/verify")  # its reference shares no code with the codec
OTHERS = {VERIFY / "reference.py", Path("tests/fixtures/records.py")}

keys = st.binary(min_size=1, max_size=40) | st.binary(min_size=MAX_KEY_SIZE, max_size=MAX_KEY_SIZE)
versions = st.binary(min_size=VERSION_SIZE, max_size=VERSION_SIZE)
values = st.binary(max_size=60)
expiries = st.none() | st.integers(0, (1 << 64) - 1)


@given(keys, versions, values, st.booleans(), expiries)
def test_a_record_reads_back(key: bytes, version: bytes, value: bytes, tombstone: bool, expiry: int | None) -> None:
    record = make_record(key, version, value, tombstone=tombstone, expiry=expiry)
    assert codec.version_of(record) == version
    assert codec.value_of(record) == value
    assert codec.value_size_of(record) == len(value)
    assert codec.expiry_of(record) == expiry
    assert codec.flags_of(record) == tombstone + 2 * (expiry is not None)
    assert codec.is_tombstone(record) == tombstone != codec.is_live(record)
    assert not codec.is_purge_marker(record)
    assert codec.head_of(record) + codec.body_of(record) == record
    assert len(codec.head_of(record)) == HEAD_SIZE <= len(record) - len(value) <= RECORD_OVERHEAD
    assert codec.digest_of(record) == codec.digest_of(codec.head_of(record)) == reference.digest_of(key, record)
    assert codec.split_version(b"k" + record, 1) == (version[:8], codec.op_id_of(record))
    assert record[codec.value_at(b"k" + record, 1) - 1 :] == value
    assert is_sound(key, record)
    if not (tombstone and (value or expiry is not None)) and (expiry is None or 0 < expiry <= codec.EXPIRY_MAX):
        assert list(record_violations(key, record, bytes(24))) == []


@given(keys, versions, values, expiries)
def test_a_record_that_is_cut_or_flipped_anywhere_is_found_out(
    key: bytes, version: bytes, value: bytes, expiry: int | None
) -> None:
    record = make_record(key, version, value, expiry=expiry)
    for size in range(len(record)):
        assert not is_sound(key, record[:size])
        assert list(record_violations(key, record[:size], bytes(24)))
        broken = record[:size] + bytes((record[size] ^ 0x10,)) + record[size + 1 :]
        assert not is_sound(key, broken)
        assert list(record_violations(key, broken, bytes(24)))


@given(keys, keys, versions, values)
def test_a_record_belongs_to_its_key(key: bytes, other: bytes, version: bytes, value: bytes) -> None:
    assert is_sound(other, make_record(key, version, value)) == (key == other)


@given(keys, versions, values, expiries)
def test_every_field_counts_in_the_digest(key: bytes, version: bytes, value: bytes, expiry: int | None) -> None:
    made = {
        codec.digest_of(make_record(key, version, value, tombstone=tombstone, expiry=when))
        for tombstone in (False, True)
        for when in {None, expiry, 1}
    }
    assert len(made) == 2 * len({None, expiry, 1})


@given(keys, versions, values)
def test_a_purge_marker_keeps_the_version(key: bytes, version: bytes, value: bytes) -> None:
    record = make_record(key, version, value)
    times = {codec.purge_marker(version): None, codec.purge_marker(record): None, codec.deletion_marker(record, 7): 7}
    for marker, time in times.items():
        assert codec.deleted_at(marker) == time
        assert codec.version_of(marker) == version
        assert codec.is_purge_marker(marker)
        assert codec.is_tombstone(marker)
        assert reference.is_purge_marker(marker)


@given(st.integers(0, (1 << 64) - 1), st.binary(min_size=16, max_size=16), keys, values)
def test_a_version_reads_back(timestamp: int, op_id: bytes, key: bytes, value: bytes) -> None:
    version = codec.make_version(timestamp, op_id)
    for one in (version, make_record(key, version, value)):
        assert codec.timestamp_of(one) == timestamp
        assert codec.op_id_of(one) == op_id
        assert codec.store_id_of(one) + codec.epoch_of(one) == op_id[:12]


def test_a_version_as_people_read_it() -> None:
    assert show_version(engines.version(5, 255) + b"rest of a record") == "5-000000000000000000000000000000ff"


# -- who knows the offsets ---------------------------------------------------------------------------------------------


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for top in ("merklekv", "tools", "tests", "benchmarks", "scripts"):
        for path in sorted((ROOT / top).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def offsets_in(tree: ast.Module) -> Iterator[str]:
    """Names of offsets that a module imports or uses, and slices that end or begin at a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name in OFFSETS)
        elif isinstance(node, ast.Attribute) and node.attr in OFFSETS:
            yield node.attr
        elif isinstance(node, ast.Slice):
            bounds = [bound for bound in (node.lower, node.upper) if bound is not None]
            names = [part for bound in bounds for part in ast.walk(bound)]
            yield from (ast.unparse(node) for part in names if isinstance(part, ast.Name) and part.id in SIZES)


def test_only_five_modules_know_where_the_fields_of_a_record_are() -> None:
    allowed = {Path("merklekv/engine") / name for name in KNOW_OFFSETS} | OTHERS
    found = {path: sorted(set(offsets_in(tree))) for path, tree in sources() if path not in allowed}
    assert {path: names for path, names in found.items() if names} == {}
