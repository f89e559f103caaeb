"""Attempts to connect get rarer when they do not help, and are frequent again after a connection that lasted."""

from __future__ import annotations

from merklekv.replication.stream.broker_session import STEADY_S
from merklekv.replication.stream.reconnect import (
    DUPLICATE_RETRY_MAX_S,
    RETRY_MAX_S,
    RETRY_MIN_S,
    SHORT_MAX,
    Backoff,
)


def waits(backoff: Backoff, count: int, stood_s: float | None, has_duplicate: bool = False) -> list[float]:
    return [backoff.next_wait_s(stood_s, has_duplicate) for _ in range(count)]


def test_a_broker_that_is_away_is_asked_every_few_seconds() -> None:
    first, *others = waits(Backoff(), 20, None)
    assert first == RETRY_MIN_S
    assert others == sorted(others)
    assert others[-1] == RETRY_MAX_S


def test_a_connection_starts_the_waits_anew() -> None:
    backoff = Backoff()
    waits(backoff, 20, None)
    assert backoff.next_wait_s(1.0) == RETRY_MIN_S


def test_a_duplicate_makes_attempts_rare() -> None:
    assert waits(Backoff(), 20, 0.1, True)[-1] == DUPLICATE_RETRY_MAX_S
    backoff = Backoff()
    assert waits(backoff, 20, STEADY_S - 1, True)[-1] == DUPLICATE_RETRY_MAX_S
    assert backoff.next_wait_s(STEADY_S, True) == RETRY_MIN_S


def crowded(backoff: Backoff) -> bool:
    return backoff.is_crowded


def test_short_connections_in_a_row_are_as_a_duplicate() -> None:
    backoff = Backoff()
    assert waits(backoff, SHORT_MAX - 1, 0.1)[-1] == RETRY_MIN_S
    assert not crowded(backoff)
    assert waits(backoff, 10, 0.1)[-1] == DUPLICATE_RETRY_MAX_S
    assert crowded(backoff)
    assert backoff.next_wait_s(STEADY_S) == RETRY_MIN_S
    assert not crowded(backoff)


def test_a_broker_that_is_away_is_no_sign_of_a_duplicate() -> None:
    backoff = Backoff()
    waits(backoff, 3 * SHORT_MAX, None)
    assert not backoff.is_crowded


def test_a_connection_that_has_helped_starts_the_waits_anew() -> None:
    backoff = Backoff()
    waits(backoff, 2 * SHORT_MAX, 0.1)
    assert backoff.restart_s() == RETRY_MIN_S
    assert not backoff.is_crowded
    assert backoff.next_wait_s(0.1) <= RETRY_MAX_S
