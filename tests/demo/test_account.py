"""The demo's account knows what a node has to hold, to the last acknowledged write, and tells what is missing."""

from __future__ import annotations

import random

import pytest

from merklekv.demo.account import DELETION_EVERY, Account, Write

KEY = b"key"
OTHER = b"other"


@pytest.fixture
def account() -> Account:
    return Account((KEY, OTHER))


def write(account: Account, times: int, *, acknowledged: bool = True) -> Write:
    """The last of some writes to KEY."""
    for _ in range(times):
        last = account.next_write(KEY)
        if acknowledged:
            account.acknowledge(last)
    return last


def lost(account: Account, value: bytes | None) -> list[bytes]:
    return list(account.lost({KEY: value}))


def test_what_was_never_written_is_absent(account: Account) -> None:
    assert lost(account, None) == []
    assert lost(account, b"write 1 to key") == [KEY]


def test_the_value_of_the_last_acknowledged_write_has_to_be_there(account: Account) -> None:
    before, last = write(account, 1), write(account, 1)
    assert last.request == (b"SET", KEY, b"write 2 to key")
    assert lost(account, last.value) == []
    assert lost(account, before.value) == [KEY]
    assert lost(account, None) == [KEY]
    assert lost(account, b"write 3 to key") == [KEY]  # nobody has sent it
    assert list(account.lost({})) == [KEY]
    assert account.acknowledged == 2


def test_a_deleted_key_has_to_stay_deleted(account: Account) -> None:
    before = write(account, DELETION_EVERY - 1)
    assert write(account, 1).request == (b"DEL", KEY)
    assert lost(account, None) == []
    assert lost(account, before.value) == [KEY]


def test_a_later_write_without_an_answer_may_be_there(account: Account) -> None:
    acknowledged = write(account, 1)
    unknown = [write(account, 1, acknowledged=False) for _ in range(2)]
    for one in (acknowledged, *unknown):
        assert lost(account, one.value) == []
    assert lost(account, None) == [KEY]
    settled = write(account, 1)
    assert lost(account, settled.value) == []
    assert lost(account, unknown[-1].value) == [KEY]
    assert account.acknowledged == 2


def test_a_deletion_without_an_answer_may_have_happened(account: Account) -> None:
    write(account, DELETION_EVERY - 1)
    assert lost(account, None) == [KEY]
    write(account, 1, acknowledged=False)
    assert lost(account, None) == []


def test_every_key_is_accounted_for_alone(account: Account) -> None:
    write(account, 1)
    assert list(account.lost({KEY: b"write 1 to key", OTHER: b"write 1 to key"})) == [OTHER]


@pytest.mark.parametrize("seed", range(5))
def test_any_run_of_a_store_that_dies_is_right_and_each_loss_is_seen(seed: int) -> None:
    """Against a store that holds all it was sent up to an accident, and a copy in which one key is set back."""
    draw = random.Random(seed)
    keys = tuple(b"key-%d" % number for number in range(20))
    account, store = Account(keys), dict[bytes, bytes | None]()
    older: dict[bytes, bytes | None] = dict.fromkeys(keys)  # what a key had before its last acknowledged write
    for _ in range(50):
        writes = [account.next_write(draw.choice(keys)) for _ in range(10)]
        done = draw.randint(5, 10)
        answered = draw.randint(0, done)
        for one in writes[:done]:
            before, store[one.key] = store.get(one.key), one.value
            if one in writes[:answered]:
                older[one.key] = before
                account.acknowledge(one)
        assert list(account.lost(store)) == []
    for key, before in older.items():
        assert list(account.lost({**store, key: b"foreign"})) == [key]
        if before is not None:
            assert list(account.lost({**store, key: before})) == [key]
