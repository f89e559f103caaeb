"""The record codec and what goes with it: the digest, the version, the bucket."""

from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.engine.clock import HybridClock
from merklekv.engine.format import BUCKETS, bucket_of
from merklekv.engine.merkle import term_of
from merklekv.engine.record import HEAD_SIZE, VERSION_SIZE, is_sound, make_record, value_of
from merklekv.engine.time_gate import TimeGate

KEY = b"key:000000000042"
VALUE = b"x" * 100
VERSION = bytes(range(VERSION_SIZE))


def test_make_a_record(benchmark: BenchmarkFixture) -> None:
    record = benchmark(make_record, KEY, VERSION, VALUE)
    assert value_of(record) == VALUE


def test_make_a_record_of_a_mebibyte(benchmark: BenchmarkFixture) -> None:
    record = benchmark(make_record, KEY, VERSION, bytes(1 << 20))
    assert len(record) == HEAD_SIZE + (1 << 20)


def test_check_a_record(benchmark: BenchmarkFixture) -> None:
    assert benchmark(is_sound, KEY, make_record(KEY, VERSION, VALUE))


def test_issue_a_version(benchmark: BenchmarkFixture) -> None:
    clock = HybridClock(TimeGate())
    first = clock.next()
    assert benchmark(clock.next) > first


def test_find_the_bucket_of_a_key(benchmark: BenchmarkFixture) -> None:
    assert 0 <= benchmark(bucket_of, KEY) < BUCKETS


def test_turn_a_record_into_its_term(benchmark: BenchmarkFixture) -> None:
    assert benchmark(term_of, make_record(KEY, VERSION, VALUE)) & 1
