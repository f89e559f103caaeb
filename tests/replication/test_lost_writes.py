"""Lost-write intervals: from which times a member has lost its writes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from merklekv.replication.cluster.lost_writes import (
    INTERVALS_MAX,
    LONGEST,
    NEWEST,
    NO_LOST_WRITES,
    LostWrites,
    merge_accounts,
    retains,
    union,
)
from merklekv.replication.cluster.lost_writes import LostWriteInterval as Interval

intervals = st.builds(
    Interval, st.integers(0, 30), st.integers(0, 30), st.sampled_from([b"a", b"b"]), st.integers(0, 40)
)
some = st.frozensets(intervals, max_size=2 * INTERVALS_MAX).map(lambda found: union(found, NO_LOST_WRITES))


@given(some, some, some)
def test_accounts_merge_in_any_order_and_any_number_of_times(
    one: LostWrites, two: LostWrites, three: LostWrites
) -> None:
    assert union(one, NO_LOST_WRITES) == union(one, one) == one
    assert union(one, two) == union(two, one) == union(union(one, two), one)
    assert union(union(one, two), three) == union(one, union(two, three))


def test_the_longest_and_the_newest_are_kept() -> None:
    short = [Interval(at, at + 1, b"a") for at in range(100, 100 + INTERVALS_MAX)]
    assert union(frozenset(short), NO_LOST_WRITES) == frozenset(short)
    long = [Interval(at, at + 10, b"a") for at in range(LONGEST)]
    assert union(frozenset(short), frozenset(long)) == frozenset(long + short[-NEWEST:])


@given(some, st.integers(0, 60), some, st.integers(0, 60))
def test_merged_accounts_are_the_same_from_either_side(
    one: LostWrites, one_through: int, two: LostWrites, two_through: int
) -> None:
    both = merge_accounts(one, one_through, two, two_through)
    assert both == merge_accounts(two, two_through, one, one_through)
    assert merge_accounts(both, max(one_through, two_through), both, 0) == both
    assert merge_accounts(one, one_through, one, one_through) == one


def test_a_slow_clock_after_a_backup_is_noticed_by_merging_both_accounts() -> None:
    first, restart = Interval(0, 5, b"run1"), Interval(10, 20, b"run2")
    before, since = frozenset({first}), frozenset({first, restart})
    assert merge_accounts(before, 20, since, 25) == since, "not behind it"
    assert merge_accounts(since, 50, since, 25) == since, "both know of it"
    both = merge_accounts(before, 50, since, 25)
    assert both == {first, Interval(10, 20, b"run2", missed_through=50)}
    times = (6, 21, 50, 51)
    assert [time for time in times if retains(both, version(time, b"run2"))] == [51]
    other = both | {Interval(10, 30, b"run3")}
    assert [time for time in (31, 50, 51) if retains(other, version(time, b"run3"))] == [31, 50, 51]


def test_which_of_two_epochs_that_began_at_once_was_the_last_is_unknown() -> None:
    intervals = frozenset({Interval(0, 5, b"run1"), Interval(10, 20, b"run2"), Interval(10, 20, b"run3")})
    assert not any(retains(intervals, version(21, run)) for run in (b"run1", b"run2", b"run3"))


def version(timestamp: int, epoch: bytes = b"run1") -> bytes:
    return timestamp.to_bytes(8, "big") + b"directory"[:8] + epoch + bytes(4)


def test_what_a_member_has_lost() -> None:
    intervals = frozenset({Interval(0, 5, b"run1"), Interval(10, 20, b"run1"), Interval(50, 70, b"run1")})
    times = (9, 10, 11, 20, 21, 50, 51, 70, 71)
    assert [time for time in times if not retains(intervals, version(time))] == [11, 20, 51, 70]
    assert retains(NO_LOST_WRITES, version(1))


def test_what_a_restored_member_has_written_in_times_in_which_it_had_written_before() -> None:
    intervals = frozenset({Interval(0, 5, b"run1"), Interval(10, 20, b"run2"), Interval(50, 70, b"run3")})
    times = (6, 10, 21, 50, 71, 100)
    accounts = {
        epoch: [time for time in times if retains(intervals, version(time, epoch))] for epoch in (b"run2", b"else")
    }
    assert accounts == {b"run2": [21, 50], b"else": []}


def test_where_more_intervals_were_than_are_kept_any_process_may_have_written() -> None:
    first, old = (
        Interval(0, 1000, b"run0"),
        [Interval(at, at + 50, b"run%d" % (at % 10)) for at in range(2001, 2801, 100)],
    )
    kept = union(frozenset({first, *old}), frozenset(Interval(at, at + 1, b"new%d" % at) for at in range(5, 9)))
    assert len(kept) == INTERVALS_MAX
    assert first in kept
    assert retains(kept, version(1500, b"else")), "one of those that are not kept may have begun there"
    assert not retains(kept, version(2799, b"else"))
