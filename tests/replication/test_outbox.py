"""The outbox: everything written is published, in order, at least once, whatever order acknowledgements come in and
wherever it is interrupted; the cursor never passes what was not acknowledged."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from merklekv.engine.engine import Engine
from merklekv.engine.log import reader as reader_module
from merklekv.engine.log import retention as retention_module
from merklekv.engine.log.reader import LogGone, LogPosition
from merklekv.engine.log.segment import list_segments
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.engine.record import make_record, value_of
from merklekv.metrics import ReplicationCounters
from merklekv.replication.stream import outbox as outbox_module
from merklekv.replication.stream.event import ENVELOPE_SIZE, decode_message
from merklekv.replication.stream.outbox import BATCH_BYTES, PACKET_OVERHEAD, Batch, Outbox

TOPIC = "prefix/node-a/events"


class Station:
    """An engine with its outbox."""

    def __init__(self, path: Path, retain_max_bytes: int = 1 << 30) -> None:
        self.engine = Engine(
            path,
            durability="never",
            memtable_size=MIN_MEMTABLE_SIZE,
            checkpoint="manual",
            retain_max_bytes=retain_max_bytes,
        )
        self.gaps: list[str] = []
        self.counters = ReplicationCounters()
        self.outbox = Outbox(self.engine, "node-a", TOPIC, self.counters, self.gaps.append)

    def write(self, *values: bytes) -> None:
        for value in values:
            self.engine.set(b"key", value)
        self.engine.commit()

    def take_all(self) -> list[Batch]:
        batches = []
        while (batch := self.outbox.next_batch()) is not None:
            batches.append(batch)
        return batches

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    made = Station(tmp_path / "data")
    yield made
    made.close()


def values(*batches: Batch) -> list[bytes]:
    found = []
    for batch in batches:
        message = decode_message(batch.payload)
        assert (message.source, message.sequence, message.event_count) == ("node-a", batch.sequence, batch.count)
        found += [value_of(record) for _, _, record in message.changes]
    return found


def test_there_is_nothing_to_publish_at_first(station: Station) -> None:
    assert station.outbox.next_batch() is None
    assert station.outbox.unread_bytes == 0
    assert station.outbox.waiting_events == station.outbox.waiting_bytes == 0
    assert station.outbox.oldest_timestamp() is None


def test_a_lone_write_leaves_alone_and_a_flood_in_bulk(station: Station) -> None:
    station.write(b"one")
    assert station.outbox.unread_bytes > 0
    (alone,) = station.take_all()
    assert (values(alone), alone.count) == ([b"one"], 1)
    for number in range(2000):
        station.write(b"%d" % number)
    batches = station.take_all()
    assert values(*batches) == [b"%d" % number for number in range(2000)]
    assert len(batches) < 10
    assert all(len(batch.payload) <= BATCH_BYTES + 100 for batch in batches)


def test_bytes_in_flight_are_those_that_are_not_acknowledged(station: Station) -> None:
    station.write(*[b"x" * BATCH_BYTES] * 3)
    batches = station.take_all()
    assert station.outbox.in_flight_bytes == sum(len(batch.payload) for batch in batches) > 3 * BATCH_BYTES
    station.outbox.acknowledge(batches[1])
    assert station.outbox.in_flight_bytes == len(batches[0].payload) + len(batches[2].payload)
    station.outbox.rewind()
    assert station.outbox.in_flight_bytes == 0
    for batch in station.take_all():
        station.outbox.acknowledge(batch)
    assert station.outbox.in_flight_bytes == 0


def test_only_what_is_committed_is_published(station: Station) -> None:
    station.engine.set(b"k", b"v")
    assert station.outbox.next_batch() is None
    station.engine.commit()
    assert values(*station.take_all()) == [b"v"]


def test_a_frame_larger_than_a_batch_is_cut(station: Station) -> None:
    many = [b"%05d" % number + b"x" * 1000 for number in range(300)]
    station.write(*many)
    batches = station.take_all()
    assert values(*batches) == many
    assert len(batches) > 4
    sequence = batches[0].sequence
    for batch in batches:
        assert batch.sequence == sequence
        sequence += batch.count


def test_events_of_other_nodes_are_not_published_and_do_not_hold_the_cursor(station: Station) -> None:
    before = station.outbox.cursor
    station.engine.merge([(1, b"r", make_record(b"r", bytes(24), b"remote"))], b"other")
    station.write(b"own")
    (batch,) = station.take_all()
    assert values(batch) == [b"own"]
    station.outbox.acknowledge(batch)
    station.engine.merge([(1, b"r", make_record(b"r", bytes(23) + b"\1", b"remote"))], b"other")
    station.engine.commit()
    assert station.outbox.next_batch() is None
    assert station.outbox.cursor == station.engine.retention.end != before


def test_the_cursor_moves_over_what_is_acknowledged_without_a_gap(station: Station) -> None:
    start = station.outbox.cursor
    batches = []
    for number in range(4):
        station.write(b"%d" % number)
        batches += station.take_all()
    first, second, third, fourth = batches
    station.outbox.acknowledge(third)
    station.outbox.acknowledge(second)
    assert station.outbox.cursor == start
    assert station.outbox.waiting_events == 4
    station.outbox.acknowledge(first)
    assert station.outbox.cursor == third.end
    assert station.outbox.waiting_events == 1
    assert station.outbox.oldest_timestamp() == fourth.timestamp_ns
    station.outbox.acknowledge(fourth)
    assert station.outbox.cursor == station.engine.retention.end
    assert station.counters.published_events == station.counters.published_batches == 4


def test_after_a_lost_connection_everything_unacknowledged_comes_again(station: Station) -> None:
    batches = []
    for number in range(4):
        station.write(b"%d" % number)
        batches += station.take_all()
    station.outbox.acknowledge(batches[0])
    station.outbox.acknowledge(batches[2])
    station.outbox.rewind()
    assert station.outbox.in_flight == 0
    assert values(*station.take_all()) == [b"1", b"2", b"3"]


def test_the_oldest_timestamp_is_that_of_the_oldest_write(station: Station) -> None:
    station.write(b"old")
    record = station.engine.record(b"key")
    assert record is not None
    station.write(b"new")
    assert station.outbox.oldest_timestamp() == int.from_bytes(record[:8], "big")


def test_an_event_larger_than_a_batch_goes_alone(station: Station) -> None:
    large = b"L" * (BATCH_BYTES * 3)
    station.write(b"before", large, b"after")
    batches = station.take_all()
    assert [batch.count for batch in batches] == [1, 1, 1]
    assert values(*batches) == [b"before", large, b"after"]


def test_an_event_larger_than_the_broker_takes_is_dropped(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    station.outbox.limit_packets(2000)
    station.write(b"before", b"L" * 2000, b"after")
    station.write(b"L" * 2000)
    batches = station.take_all()
    assert values(*batches) == [b"before", b"after"]
    assert batches[1].sequence == batches[0].sequence + 2, "the others see from the sequence that one is missing"
    assert station.counters.outbox_dropped_too_large == 2
    assert "2000" not in station.gaps
    assert station.gaps == ["too large", "too large"]
    assert "is not published" in caplog.text
    for batch in batches:
        station.outbox.acknowledge(batch)
    assert station.outbox.cursor == station.engine.retention.end


def test_events_up_to_the_packet_limit_are_published(station: Station) -> None:
    station.write(b"x" * 5000)
    payload = len(station.take_all()[0].payload)
    for limit, count in ((payload + len(TOPIC) + PACKET_OVERHEAD + ENVELOPE_SIZE, 1), (payload, 0)):
        station.outbox.rewind()
        station.outbox.limit_packets(limit)
        assert len(station.take_all()) == count


def test_an_event_larger_than_any_node_takes_is_dropped(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MESSAGE_BYTES_MAX", 100_000)
    station.outbox.limit_packets(None)
    station.write(b"x" * 99_800, b"L" * 100_000, b"after")
    batches = station.take_all()
    assert [len(value) for value in values(*batches)] == [99_800, 5]
    assert all(len(batch.payload) <= 100_000 for batch in batches)
    assert station.counters.outbox_dropped_too_large == 1


def test_no_packet_is_larger_than_the_broker_takes(station: Station) -> None:
    station.outbox.limit_packets(1500)
    many = [b"x" * size for size in range(0, 1200, 7)]
    station.write(*many)
    batches = station.take_all()
    assert values(*batches) == many
    assert all(len(batch.payload) + len(TOPIC) + PACKET_OVERHEAD <= 1500 for batch in batches)


def test_a_batch_refused_for_its_size_is_cut_down_to_the_event_that_is_too_large(station: Station) -> None:
    many = [b"%03d" % number + b"x" * 900 for number in range(100)]
    many[40] += b"L" * 2000
    station.write(*many)
    published: list[bytes] = []
    for _ in range(300):
        batch = station.outbox.next_batch()
        if batch is None:
            break
        if len(batch.payload) > 2500:
            station.outbox.too_large(batch)
        else:
            published += values(batch)
            station.outbox.acknowledge(batch)
    assert published == many[:40] + many[41:]
    assert station.counters.outbox_dropped_too_large == 1
    assert station.outbox.waiting_events == 0


def test_a_connection_lost_again_and_again_over_the_same_batch_makes_it_smaller(station: Station) -> None:
    many = [b"%03d" % number + b"x" * 900 for number in range(60)]
    station.write(*many)

    def lose(times: int) -> int:
        size = 0
        for _ in range(times):
            batch = station.outbox.next_batch()
            assert batch is not None
            size = len(batch.payload)
            station.outbox.suspect()
            station.outbox.rewind()
            station.outbox.limit_packets(None)
        return size

    whole = lose(outbox_module.SUSPICIONS_MAX)
    assert lose(1) <= whole // outbox_module.BATCH_CUT + ENVELOPE_SIZE
    batches = station.take_all()
    assert values(*batches) == many
    station.outbox.suspect()
    station.outbox.acknowledge(batches[0])
    station.outbox.suspect()
    station.outbox.suspect()
    assert station.counters.outbox_dropped_too_large == 0, "a different one each time means nothing"


def test_an_event_suspected_again_and_again_is_dropped_unless_it_is_small(station: Station) -> None:
    station.write(b"L" * 3000)
    station.write(b"small")
    for _ in range(outbox_module.SUSPICIONS_MAX):
        assert station.counters.outbox_dropped_too_large == 0
        station.outbox.limit_packets(3200)  # so that each goes alone
        assert station.outbox.next_batch() is not None
        station.outbox.suspect()
        station.outbox.rewind()
    assert station.counters.outbox_dropped_too_large == 1
    for _ in range(2 * outbox_module.SUSPICIONS_MAX):
        (batch,) = station.take_all()
        assert values(batch) == [b"small"]
        station.outbox.suspect()
        station.outbox.rewind()
    assert station.counters.outbox_dropped_too_large == 1
    station.outbox.suspect()


def test_dropped_events_are_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    station = Station(tmp_path / "data", retain_max_bytes=3 * MIN_MEMTABLE_SIZE)
    many = [b"%05d" % number for number in range(6000)]
    for part in range(6):
        for value in many[part * 1000 : part * 1000 + 1000]:
            station.write(value)
        station.engine.checkpoint_now()
    station.outbox.oldest_timestamp()
    lost = station.counters.outbox_dropped_overflow
    assert lost > 0
    assert station.gaps == ["overflow"]
    assert f"filled the disk: {lost} events not published" in caplog.text
    batches = station.take_all()
    assert values(*batches) == many[lost:]
    for batch in batches:
        station.outbox.acknowledge(batch)
    assert station.outbox.waiting_events == 0
    station.close()


def test_a_gap_in_the_log_without_events_of_this_node_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, the log goes before the outbox has stored how far it is."""
    station = Station(tmp_path / "data")
    station.write(b"1", b"2")
    for batch in station.take_all():
        station.outbox.acknowledge(batch)
    gone = LogGone(LogPosition(station.outbox.cursor.lsn + 100, station.outbox.next_sequence))
    monkeypatch.setattr(station.outbox.retention, "next_frame", Mock(side_effect=[gone, None]))
    assert station.take_all() == []
    assert station.outbox.cursor == gone.oldest
    assert station.counters.outbox_dropped_overflow == 0
    assert "not published" not in caplog.text
    station.close()


def test_a_restart_goes_on_with_what_was_not_acknowledged(tmp_path: Path) -> None:
    station = Station(tmp_path / "data")
    station.write(b"1", b"2", b"3")
    station.outbox.limit_packets(len(TOPIC) + PACKET_OVERHEAD + 100 + ENVELOPE_SIZE)
    first, second, _ = station.take_all()
    station.outbox.acknowledge(first)
    station.outbox.acknowledge(second)
    station.outbox.save()
    station.close()
    for _ in range(2):  # and again, without anything having been published in between
        station = Station(tmp_path / "data")
        station.write(b"later")
        station.close()
    station = Station(tmp_path / "data")
    assert values(*station.take_all()) == [b"3", b"later", b"later"]
    station.close()


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_skipped_wherever_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Writes, merges, batches, acknowledgements in any order, lost connections, kills: each event arrives."""
    chance = random.Random(seed)
    monkeypatch.setattr(retention_module, "RECENT_BYTES", chance.choice([0, 500, 1 << 20]))
    monkeypatch.setattr(reader_module, "READ_BYTES", chance.choice([100, 5000, 1 << 20]))
    monkeypatch.setattr(outbox_module, "BATCH_BYTES", chance.choice([300, 2000, BATCH_BYTES]))
    station = Station(tmp_path / "0")
    flight: list[Batch] = []
    written: list[bytes] = []
    arrived: set[bytes] = set()
    acknowledged: set[bytes] = set()

    def write() -> None:
        many = [b"%d:" % len(written) + b"%d" % number * chance.randrange(90) for number in range(chance.randrange(40))]
        station.write(*many)
        written.extend(many)

    def hand_out() -> None:
        if (batch := station.outbox.next_batch()) is not None:
            flight.append(batch)
            arrived.update(values(batch))

    def acknowledge() -> None:
        if flight:
            batch = flight.pop(chance.randrange(len(flight)))
            station.outbox.acknowledge(batch)
            acknowledged.update(values(batch))

    def lose_connection() -> None:
        flight.clear()
        station.outbox.rewind()

    def merge() -> None:
        station.engine.checkpoint_now()

    def kill() -> None:
        nonlocal station
        following = tmp_path / str(int(station.engine.directory.path.name) + 1)
        shutil.copytree(station.engine.directory.path, following)  # what a killed process leaves behind
        station.close()
        flight.clear()
        station = Station(following)

    def check() -> None:
        missing = station.outbox.waiting_events
        assert acknowledged >= set(written[: len(written) - missing]), "the cursor passed what was not acknowledged"

    def save() -> None:
        station.outbox.save()

    steps = [write] * 6 + [hand_out] * 8 + [acknowledge] * 8 + [lose_connection, merge, kill, save]
    for _ in range(400):
        chance.choice(steps)()
        check()
    lose_connection()
    for batch in station.take_all():
        arrived.update(values(batch))
        station.outbox.acknowledge(batch)
    assert arrived >= set(written)
    assert station.outbox.waiting_events == 0
    station.outbox.save()
    station.engine.checkpoint_now()
    assert len(list_segments(station.engine.directory.log)) == 1
    station.close()


def test_a_damaged_place_in_a_log_that_begins_without_local_events(tmp_path: Path) -> None:
    station = Station(tmp_path / "data")
    station.engine.put_metadata(b"name", b"fact")
    station.engine.commit()
    station.close()
    (tmp_path / "data" / "outbox").write_bytes(b"")
    station = Station(tmp_path / "data")
    assert station.take_all() == []
    assert (station.outbox.waiting_events, station.outbox.next_sequence) == (0, 1)
    station.write(b"1")
    assert values(*station.take_all()) == [b"1"]
    station.close()
