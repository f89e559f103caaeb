"""The rule that tells whether a curve grows, and the account that tells whether a write was lost."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from .account import Account, Counter, Fleeting, Pair, Plain
from .flat import change

SECONDS = 600


def curve(value: Callable[[int], float]) -> list[tuple[float, float]]:
    return [(second, value(second)) for second in range(SECONDS)]


@pytest.mark.parametrize(
    ("value", "is_flat"),
    [
        (lambda second: 100, True),
        (lambda second: min(second, 100), True),  # the warm-up does not count
        (lambda second: 100 + second % 60, True),  # a saw
        (lambda second: 1000 if second % 100 < 20 else 100, True),  # peaks
        (lambda second: 100 if second < 300 else 115, True),
        (lambda second: 100 if second < 300 else 130, False),
        (lambda second: 100 + second / 10, False),
        (lambda second: 600 - second, True),
        (lambda second: 0, True),
        (lambda second: second // 300, True),  # below the slack
        (lambda second: second // 100, False),
    ],
)
def test_a_curve_is_flat(value: Callable[[int], float], is_flat: bool) -> None:
    found = change(curve(value), SECONDS, slack=2)
    assert found is not None
    assert found.is_flat == is_flat


def test_a_curve_with_too_few_values_is_not_judged() -> None:
    assert change([], SECONDS, 0) is None
    assert change(curve(lambda second: 1)[:200], SECONDS, 0) is None


def test_a_key_shows_the_last_acknowledged_write_or_one_that_was_sent_later() -> None:
    key = Plain(b"k", 20)
    assert key.fits((None,))
    key.write()
    assert key.fits((None,))
    assert key.fits((key.value(1),))
    key.acknowledge()
    assert not key.fits((None,))
    key.write()
    assert key.fits((key.value(1),))
    assert key.settle((key.value(2),))  # seen once, it may not be lost
    assert not key.fits((key.value(1),))


def test_a_counter_is_exact_once_it_was_read() -> None:
    key = Counter(b"k")
    for _ in range(3):
        key.write()
    key.acknowledge()
    assert [number for number in range(6) if key.fits((b"%d" % number,))] == [1, 2, 3]
    assert key.settle((b"2",))
    key.write()
    key.acknowledge()
    assert [number for number in range(6) if key.fits((b"%d" % number,))] == [3]


def test_pairs_do_not_part_and_what_expires_is_gone_in_the_end() -> None:
    pair = Pair(b"a", b"b")
    pair.write()
    assert pair.fits((b"1", b"1"))
    assert not pair.fits((b"1", None))
    fleeting = Fleeting(b"k")
    fleeting.write()
    fleeting.acknowledge()
    assert fleeting.settle((b"1",))
    assert fleeting.settle((None,))
    assert fleeting.fits((None,))
    assert not fleeting.fits((b"1",))


def test_an_account_names_what_was_lost() -> None:
    account = Account("node", random.Random(0))
    values = dict.fromkeys(account.keys)
    assert list(account.lost(list(values.values()))) == []
    item = account.items[0]
    item.write()
    item.acknowledge()
    assert list(account.lost(list(values.values()))) == [item]
