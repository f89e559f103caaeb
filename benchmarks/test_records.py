"""The record codec and what goes with it: the digest, the version, the bucket."""

from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.engine.clock import HybridClock
from merklekv.engine.format import BUCKETS, VALUE_AT, VERSION_SIZE, bucket_of, make_record, record_is_sound
from merklekv.engine.merkle import term_of

KEY = b"key:000000000042"
VALUE = b"x" * 100
VERSION = bytes(range(VERSION_SIZE))


def test_make_a_record(benchmark: BenchmarkFixture) -> None:
    record = benchmark(make_record, KEY, VERSION, 0, VALUE)
    assert record[VALUE_AT:] == VALUE


def test_make_a_record_of_a_mebibyte(benchmark: BenchmarkFixture) -> None:
    record = benchmark(make_record, KEY, VERSION, 0, bytes(1 << 20))
    assert len(record) == VALUE_AT + (1 << 20)


def test_check_a_record(benchmark: BenchmarkFixture) -> None:
    assert benchmark(record_is_sound, KEY, make_record(KEY, VERSION, 0, VALUE))


def test_issue_a_version(benchmark: BenchmarkFixture) -> None:
    clock = HybridClock()
    first = clock.next()
    assert benchmark(clock.next) > first


def test_find_the_bucket_of_a_key(benchmark: BenchmarkFixture) -> None:
    assert 0 <= benchmark(bucket_of, KEY) < BUCKETS


def test_turn_a_record_into_its_term(benchmark: BenchmarkFixture) -> None:
    assert benchmark(term_of, make_record(KEY, VERSION, 0, VALUE)) & 1
