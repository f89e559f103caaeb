"""The times from which a member has forgotten what it wrote."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from merklekv.replication.cluster.lost_writes import (
    LAPSES_MAX,
    LONGEST,
    NEWEST,
    NO_LAPSES,
    Lapse,
    account_for,
    joined,
    shared,
    was_away,
)

lapses = st.builds(Lapse, st.integers(0, 30), st.integers(0, 30), st.sampled_from([b"a", b"b"]), st.integers(0, 40))
some = st.frozensets(lapses, max_size=2 * LAPSES_MAX).map(lambda found: joined(found, NO_LAPSES))


@given(some, some, some)
def test_lapses_join_in_any_order_and_any_number_of_times(
    one: frozenset[Lapse], two: frozenset[Lapse], three: frozenset[Lapse]
) -> None:
    assert joined(one, NO_LAPSES) == joined(one, one) == one
    assert joined(one, two) == joined(two, one) == joined(joined(one, two), one)
    assert joined(joined(one, two), three) == joined(one, joined(two, three))


def test_the_longest_and_the_newest_are_kept() -> None:
    short = [Lapse(at, at + 1, b"a") for at in range(100, 100 + LAPSES_MAX)]
    assert joined(frozenset(short), NO_LAPSES) == frozenset(short)
    long = [Lapse(at, at + 10, b"a") for at in range(LONGEST)]
    assert joined(frozenset(short), frozenset(long)) == frozenset(long + short[-NEWEST:])


@given(some, st.integers(0, 60), some, st.integers(0, 60))
def test_two_nodes_know_the_same_together_whoever_tells(
    one: frozenset[Lapse], one_seen: int, two: frozenset[Lapse], two_seen: int
) -> None:
    both = shared(one, one_seen, two, two_seen)
    assert both == shared(two, two_seen, one, one_seen)
    assert shared(both, max(one_seen, two_seen), both, 0) == both
    assert shared(one, one_seen, one, one_seen) == one


def test_a_slow_clock_after_a_backup_is_noticed_by_who_knows_of_both() -> None:
    store_id, restart = Lapse(0, 5, b"run1"), Lapse(10, 20, b"run2")
    before, since = frozenset({store_id}), frozenset({store_id, restart})
    assert shared(before, 20, since, 25) == since, "not behind it"
    assert shared(since, 50, since, 25) == since, "both know of it"
    both = shared(before, 50, since, 25)
    assert both == {store_id, Lapse(10, 20, b"run2", missed=50)}
    times = (6, 21, 50, 51)
    assert [time for time in times if account_for(both, version(time, b"run2"))] == [51]
    other = both | {Lapse(10, 30, b"run3")}
    assert [time for time in (31, 50, 51) if account_for(other, version(time, b"run3"))] == [31, 50, 51]


def test_which_of_two_runs_that_began_at_once_was_the_last_is_unknown() -> None:
    lapses = frozenset({Lapse(0, 5, b"run1"), Lapse(10, 20, b"run2"), Lapse(10, 20, b"run3")})
    assert not any(account_for(lapses, version(21, run)) for run in (b"run1", b"run2", b"run3"))


def version(timestamp: int, run: bytes = b"run1") -> bytes:
    return timestamp.to_bytes(8, "big") + b"directory"[:8] + run + bytes(4)


def test_what_a_member_has_forgotten() -> None:
    lapses = frozenset({Lapse(0, 5, b"run1"), Lapse(10, 20, b"run1"), Lapse(50, 70, b"run1")})
    times = (9, 10, 11, 20, 21, 50, 51, 70, 71)
    assert [time for time in times if not account_for(lapses, version(time))] == [11, 20, 51, 70]
    assert account_for(NO_LAPSES, version(1))


def test_what_a_restored_member_has_written_in_times_in_which_it_had_written_before() -> None:
    lapses = frozenset({Lapse(0, 5, b"run1"), Lapse(10, 20, b"run2"), Lapse(50, 70, b"run3")})
    times = (6, 10, 21, 50, 71, 100)
    accounts = {run: [time for time in times if account_for(lapses, version(time, run))] for run in (b"run2", b"else")}
    assert accounts == {b"run2": [21, 50], b"else": []}


def test_where_more_lapses_were_than_are_kept_any_process_may_have_written() -> None:
    store_id, old = Lapse(0, 1000, b"run0"), [Lapse(at, at + 50, b"run%d" % (at % 10)) for at in range(2001, 2801, 100)]
    kept = joined(frozenset({store_id, *old}), frozenset(Lapse(at, at + 1, b"new%d" % at) for at in range(5, 9)))
    assert len(kept) == LAPSES_MAX
    assert store_id in kept
    assert account_for(kept, version(1500, b"else")), "one of those that are not kept may have begun there"
    assert not account_for(kept, version(2799, b"else"))


def test_who_was_seen_where_it_says_that_it_was_away() -> None:
    lapses = frozenset({Lapse(0, 5, b"run1"), Lapse(10, 20, b"run2")})
    assert [time for time in (5, 10, 11, 19, 20, 21) if was_away(lapses, time)] == [11, 19]
    assert not was_away(NO_LAPSES, 15)
