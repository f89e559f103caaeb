"""The one excuse of the oracle that no kept history needs: what came before a value that is lost, and was too large."""

from __future__ import annotations

import pytest

from merklekv.engine.record import OP_ID_SIZE, ZERO_VERSION, make_record, make_version, version_of

from .oracle import Holding, Oracle, show

KEY = b"k"


def record(timestamp: int, value: bytes, tombstone: bool = False) -> bytes:
    return make_record(KEY, make_version(timestamp, bytes(OP_ID_SIZE)), value, tombstone=tombstone)


OLD, DELETED, LARGE = record(1, b"old"), record(2, b"", tombstone=True), record(3, b"large")
REPLACED = record(2, b"new")


@pytest.mark.parametrize(
    ("second", "is_refused", "is_lost", "is_excused"),
    [
        (DELETED, True, True, True),
        (DELETED, True, False, False),
        (DELETED, False, True, False),
        (REPLACED, True, True, False),
    ],
)
def test_a_deletion_below_a_refused_value_that_is_lost(
    second: bytes, is_refused: bool, is_lost: bool, is_excused: bool
) -> None:
    oracle = Oracle()
    for one in (OLD, second, LARGE):
        oracle.attempt(KEY, one)
        oracle.acknowledge([(KEY, one)])
    if is_refused:
        oracle.refuses(KEY, version_of(LARGE))
    final = Holding({KEY: OLD}, ZERO_VERSION, gc_horizon=0)
    if is_lost:
        oracle.excuse(KEY, LARGE)
        oracle.acknowledge([(KEY, second)])  # which other nodes still had
    wrong = [line for line in oracle.judge(final) if line.startswith(f"acknowledged and lost: {show(KEY, second)};")]
    assert bool(wrong) is not is_excused
