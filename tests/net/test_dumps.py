"""DUMP and RESTORE: values go to a Redis and come from it, and nothing that is damaged gets in."""

from __future__ import annotations

from random import Random

import pytest
from fixtures.handlers import begin, pauses_of, result_of
from fixtures.wire import Wire
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.engine import Engine
from merklekv.net import crc64, rdb
from merklekv.net.errors import RequestError
from merklekv.net.session import Session

SIZE_MAX = 1 << 20
VALUES = (
    *(b"", b"a", b"Hello World", b"\x00\xff\r\n", b"01", b"-0", b"+1", b"1.5", b"9" * 11, b"9" * 12),
    *(
        b"%d" % (sign * (1 << bits) + more)
        for sign in (-1, 1)
        for bits in (7, 8, 15, 16, 31, 32)
        for more in (-1, 0, 1)
    ),
    *(b"x" * size for size in (20, 21, 63, 64, 300, 16383, 16384, 70_000)),
    *(b"abc" * size for size in (10, 100, 5_000)),
    Random(1).randbytes(5_000),
    b"".join(b"%d," % number for number in range(20_000)),
)


def value_in(reply: bytes) -> bytes:
    return reply.partition(b"\r\n")[2][:-2]


def checksum(data: bytes) -> int:
    """As the definition says, a bit at a time."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return crc


def finished(task: object) -> object:
    """What a generator that only lets others run returns."""
    while True:
        try:
            assert next(task) is None  # type: ignore[call-overload]
        except StopIteration as end:
            return end.value


def payload(body: bytes, version: int = rdb.VERSION) -> bytes:
    whole = body + version.to_bytes(2, "little")
    return whole + checksum(whole).to_bytes(8, "little")


def test_the_checksum() -> None:
    assert finished(crc64.crc64(b"123456789")) == 0xE9C6D914C4B8D9CA
    random = Random(1)
    around = crc64.TABLE_BYTES_MAX
    for size in (0, 1, 7, around - 1, around, around + 1, 2 * around - 1, 2 * around + 3, 5 * around, 70_001):
        data = random.randbytes(size)
        assert finished(crc64.crc64(data)) == checksum(data), size


@pytest.mark.parametrize("compression", ["no", "yes"])
def test_values_go_to_redis_and_back(
    compression: str, redis_address: tuple[str, int], engine: Engine, session: Session
) -> None:
    with Wire(redis_address) as redis:
        redis.call("CONFIG", "SET", "rdbcompression", compression)
        try:
            for value in VALUES:
                engine.set(b"k", value)
                dumped = value_in(result_of(session, [b"DUMP", b"k"]))
                assert redis.call("RESTORE", "k", "0", dumped, "REPLACE") == b"+OK\r\n"
                assert value_in(redis.call("GET", "k")) == value
                theirs = value_in(redis.call("DUMP", "k"))
                assert compression == "yes" or theirs == dumped
                assert result_of(session, [b"RESTORE", b"k2", b"0", theirs, b"REPLACE"]) == b"+OK\r\n"
                assert engine.get(b"k2") == value
        finally:
            redis.call("CONFIG", "SET", "rdbcompression", "no")


@pytest.mark.parametrize(
    ("given_", "problem"),
    [
        (b"", "version or checksum"),
        (b"\0" * 9, "version or checksum"),
        (payload(b"\0\1a")[:-1] + b"\0", "version or checksum"),
        (payload(b"\0\1a", rdb.VERSION_MAX + 1), "version or checksum"),
        (payload(b""), "Bad data format$"),
        (payload(b"\0"), "Bad data format$"),
        (payload(b"\1\1a"), "RDB type 1, and only strings, type 0, can be restored here"),
        (payload(b"\0\2a"), "Bad data format$"),
        (payload(b"\0\0a"), "Bad data format$"),
        (payload(b"\0\xc4a"), "Bad data format$"),
        (payload(b"\0\x82aaaaaaaa"), "Bad data format$"),
        (payload(b"\0\xc2a"), "Bad data format$"),
        (payload(b"\0\x81" + b"\xff" * 8), f"a value of {2**64 - 1} bytes, and max_value_size is 1048576 bytes"),
        (payload(b"\0\x80\x00\x10\x00\x01"), "a value of 1048577 bytes"),
        (payload(b"\0\xc3\4\x80\x00\x10\x00\x01\x00a\xe0\xff"), "a value of 1048577 bytes"),
        (payload(b"\0\xc3\4\1\x20\x00aa"), "Bad data format$"),  # repeats what is before the start
        (payload(b"\0\xc3\2\2\x00a"), "Bad data format$"),  # less than it says
        (payload(b"\0\xc3\5\2\x00a\xe0\xff\x00"), "Bad data format$"),  # more
        (payload(b"\0\xc3\3\x0b\x00a\xe0"), "Bad data format$"),  # ends in a token
        (payload(b"\0\xc3\3\1\x04ab"), "Bad data format$"),
    ],
)
def test_what_is_damaged_is_refused(given_: bytes, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        finished(rdb.load(given_, SIZE_MAX))


def test_a_later_version_is_read() -> None:
    assert finished(rdb.load(payload(b"\0\1a", rdb.VERSION_MAX), SIZE_MAX)) == b"a"
    assert finished(rdb.load(payload(b"\0\1a", 1), SIZE_MAX)) == b"a"


@given(st.binary(max_size=40), st.booleans())
def test_any_payload_is_a_value_or_refused(body: bytes, is_compressed: bool) -> None:
    try:
        value = finished(rdb.load(payload(b"\0\xc3" + body if is_compressed else b"\0" + body), 200))
    except RequestError:
        return
    assert isinstance(value, bytes)
    assert len(value) <= 200


def test_others_run_between_the_slices(engine: Engine, session: Session) -> None:
    engine.set(b"k", Random(1).randbytes(4 << 20))
    assert pauses_of(session, [b"DUMP", b"k"]) > 50
    dumped = value_in(result_of(session, [b"DUMP", b"k"]))
    assert pauses_of(session, [b"RESTORE", b"l", b"0", dumped]) > 50
    assert engine.get(b"l") == engine.get(b"k")
    runs = b"\0a" * 100_000  # of one byte each
    packed = payload(
        b"\0\xc3\x80" + len(runs).to_bytes(4, "big") + b"\x80" + (len(runs) // 2).to_bytes(4, "big") + runs
    )
    assert pauses_of(session, [b"RESTORE", b"m", b"0", packed]) > 100_000 // rdb.LZF_STEP
    assert engine.get(b"m") == b"a" * 100_000


def test_a_key_that_comes_meanwhile_is_kept(engine: Engine, session: Session) -> None:
    engine.set(b"k", b"v" * (4 << 20))
    dumped = value_in(result_of(session, [b"DUMP", b"k"]))
    task = begin(session, [b"RESTORE", b"l", b"0", dumped])
    assert next(task) is None
    engine.set(b"l", b"mine")
    with pytest.raises(RequestError, match="already exists"):
        finished(task)
    assert engine.get(b"l") == b"mine"


def test_an_expiry_that_is_over_deletes_and_one_that_is_too_far_is_refused(engine: Engine, session: Session) -> None:
    restore = [b"RESTORE", b"k", b"1", payload(b"\0\1a"), b"REPLACE", b"ABSTTL"]
    engine.set(b"k", b"v")
    assert result_of(session, restore) == b"+OK\r\n"
    assert engine.get(b"k") is None
    restore[2] = b"%d" % (2**63 - 1)
    assert result_of(session, restore) == b"+OK\r\n"
    assert engine.expiry(b"k") == 2**63 - 1
    del restore[5:]
    before = engine.log.appended
    with pytest.raises(RequestError, match="invalid expire time in 'restore' command"):
        result_of(session, restore)
    assert engine.log.appended == before
