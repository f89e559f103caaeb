"""What is on disk reads back as it was written, and is recognised when it is not what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import engines
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.format import KEYLESS_OPS, MAX_KEY_SIZE, bucket_of
from merklekv.engine.log.segment import RECORD_PLACE, Segment
from merklekv.engine.memtable import Records
from merklekv.engine.record import VERSION_SIZE
from merklekv.engine.verify import reference
from merklekv.errors import Corruption, FormatTooNew

keys = st.binary(min_size=1, max_size=40) | st.binary(min_size=MAX_KEY_SIZE, max_size=MAX_KEY_SIZE)
versions = st.binary(min_size=VERSION_SIZE, max_size=VERSION_SIZE)
values = st.binary(max_size=60)
entries = st.lists(
    st.builds(
        engines.entry,
        st.integers(1, 8) | st.integers(129, 135),
        st.binary(max_size=20),
        st.binary(max_size=50) | st.just(b"MKVF" * 12),
    ),
    max_size=8,
)


@given(keys)
def test_the_bucket_is_the_top_of_the_hash(key: bytes) -> None:
    assert bucket_of(key) == reference.bucket_of(key) < 65536


@given(st.lists(entries, max_size=4), st.integers(0, 2**40))
def test_a_segment_reads_back(frames: list[list[bytes]], lsn: int) -> None:
    with engines.directory() as path:
        path.mkdir()
        file = path / f"{lsn:020d}.log"
        data, position, expected = engines.header(lsn, 7), 48, []
        for number, frame in enumerate(frames):
            data += engines.frame(lsn, position, frame, 7 + number, synced=lsn + number)
            expected.append((position, len(data), lsn + number, 7 + number, len(frame), len(frame), b"".join(frame)))
            position = len(data)
        file.write_bytes(data + bytes(100))
        with Segment(file) as segment:
            assert segment.sequence == 7
            read = list(segment.frames())
            assert [(f.position, f.end, f.synced, f.sequence, f.local_count, f.entry_count) for f in read] == [
                frame[:6] for frame in expected
            ]
            for found, (*_, payload) in zip(read, expected, strict=True):
                places = Records()
                others = segment.note_each(found, 3, places)
                noted = {}
                for key, place in places.items():
                    index, at, size = RECORD_PLACE.unpack(place)
                    noted[key] = index, segment.data[at : at + size]
                plain = list(reference.read_entries(payload))
                assert others == [(e.op | e.remote << 7, e.key, e.record) for e in plain if e.op in KEYLESS_OPS]
                newest = {e.key: (3, e.record) for e in plain if e.op not in KEYLESS_OPS}
                assert noted == newest
            assert segment.is_zero_filled(position)
        with file.open("rb") as opened:
            assert reference.read_header(opened, lsn) == (3, 7)
            for frame_ in expected:
                assert reference.read_frame(opened, lsn, frame_[0]) == frame_
            assert reference.read_frame(opened, lsn, position) is None


def test_a_frame_that_is_cut_or_flipped_anywhere_is_none(tmp_path: Path) -> None:
    file = tmp_path / f"{0:020d}.log"
    whole = engines.header(0) + engines.frame(0, 48, [engines.set_entry(1), engines.set_entry(2)])
    for at in range(48, len(whole)):
        for broken in (whole[:at], whole[:at] + bytes((whole[at] ^ 4,)) + whole[at + 1 :]):
            file.write_bytes(broken)
            with Segment(file) as segment, file.open("rb") as opened:
                assert next(segment.frames(48), None) is None
                assert reference.read_frame(opened, 0, 48) is None


def test_a_frame_counts_only_at_its_own_position(tmp_path: Path) -> None:
    """A new file may get the blocks of an old one: the old frames in them are none of the new file."""
    frame = engines.frame(0, 48, [engines.set_entry(1)])
    for lsn, position in ((0, 49), (0, 148), (4096, 48)):
        file = tmp_path / f"{lsn:020d}.log"
        file.write_bytes(engines.header(lsn) + bytes(position - 48) + frame)
        with Segment(file) as segment:
            assert next(segment.frames(position), None) is None


def test_a_header_that_is_cut_or_flipped_anywhere_is_damage(tmp_path: Path) -> None:
    file = tmp_path / f"{0:020d}.log"
    whole = engines.header(0) + engines.frame(0, 48, [engines.set_entry(1)])
    for at in range(48):
        file.write_bytes(whole[:at])
        with pytest.raises(Corruption, match=f"{file}: damaged at byte 0"):
            Segment(file)
        file.write_bytes(whole)
        engines.flip(file, at)
        with pytest.raises(Corruption, match=f"{file}: damaged at byte 0"):
            Segment(file)
    file.rename(tmp_path / f"{1:020d}.log")
    with pytest.raises(Corruption):
        Segment(tmp_path / f"{1:020d}.log")


def test_a_log_of_a_later_release_is_refused(tmp_path: Path) -> None:
    file = tmp_path / f"{0:020d}.log"
    file.write_bytes(engines.header(0, format_version=4))
    with pytest.raises(FormatTooNew, match="log format 4 is from a later release"):
        Segment(file)


@given(st.binary(max_size=60))
def test_entries_that_do_not_fill_their_frame_are_found_out(payload: bytes) -> None:
    try:
        entries = list(reference.read_entries(payload))
    except ValueError:
        return
    assert b"".join(engines.entry(e.op | e.remote << 7, e.key, e.record) for e in entries) == payload
