"""LCS finds the same parts as Redis, in slices, whatever the two values look like."""

from __future__ import annotations

from random import Random

import pytest
from fixtures.handlers import pauses_of, result_of
from fixtures.wire import Wire, encode

from merklekv.engine.engine import Engine
from merklekv.net import lcs
from merklekv.net.commands.lcs import TOO_LARGE
from merklekv.net.errors import RequestError
from merklekv.net.session import Session

PAIRS = 300
BATCH = 50


def text(random: Random) -> bytes:
    letters = b"abcdefghij"[: random.randint(1, 10)]
    return bytes(random.choices(letters, k=random.choice((0, 1, 2, 3, 8, 20, 63, 64, 65, 150))))


def test_the_parts_are_those_of_redis(redis_address: tuple[str, int], engine: Engine, session: Session) -> None:
    random = Random(1)
    asked = (b"LCS a b", b"LCS a b LEN", b"LCS a b IDX WITHMATCHLEN", b"LCS b a IDX MINMATCHLEN 3")
    requests = [request.split() for request in asked]
    with Wire(redis_address) as redis:
        for _ in range(PAIRS // BATCH):
            pairs = [(text(random), text(random)) for _ in range(BATCH)]
            for a, b in pairs:
                redis.send(encode("SET", "a", a) + encode("SET", "b", b))
                redis.send(b"".join([encode(*request) for request in requests]))
            for a, b in pairs:
                engine.set(b"a", a)
                engine.set(b"b", b)
                assert (redis.resp(), redis.resp()) == (b"+OK\r\n", b"+OK\r\n")
                for request in requests:
                    assert redis.resp() == result_of(session, request), (a, b, request)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (b"x" * 10_000, b"y" * 10_000),
        (b"xy" * 5_000, b"yx" * 5_000),
        (bytes(range(100)), b"\xff" * (1 << 18)),
        (b"\xff" * (1 << 18), bytes(range(100))),
    ],
    ids=["different", "alike", "wide", "high"],
)
def test_others_run_between_the_slices(a: bytes, b: bytes, engine: Engine, session: Session) -> None:
    engine.set(b"a", a)
    engine.set(b"b", b)
    cells = len(a) * len(b)
    assert pauses_of(session, b"LCS a b".split()) >= cells // lcs.ROW_STEP_BITS


def test_the_table_is_bounded(engine: Engine, session: Session) -> None:
    engine.set(b"a", b"x" * ((1 << 14) - 1))
    engine.set(b"b", b"x" * ((1 << 13) - 1))
    assert lcs.CELLS_MAX == (1 << 14) * (1 << 13)
    assert result_of(session, b"LCS a b LEN".split()) == b":%d\r\n" % ((1 << 13) - 1)
    engine.append(b"b", b"x")
    with pytest.raises(RequestError, match=TOO_LARGE):
        result_of(session, b"LCS a b LEN".split())
