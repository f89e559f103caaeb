"""The times from which a member has forgotten what it wrote."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from merklekv.replication.lapses import LAPSES_MAX, LONGEST, NEWEST, NO_LAPSES, Lapse, departure, joined, lie_around

lapses = st.builds(Lapse, st.integers(0, 30), st.integers(0, 30), st.sampled_from([b"a", b"b"]))
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


def test_what_lies_in_a_lapse() -> None:
    lapses = frozenset({Lapse(10, 20, b"a"), Lapse(50, 70, b"a")})
    assert [time for time in (9, 10, 11, 20, 21, 50, 70, 71) if lie_around(lapses, time)] == [11, 20, 70]
    assert not lie_around(NO_LAPSES, 15)


def test_where_a_restored_member_departs_from_what_was_seen() -> None:
    known = frozenset({Lapse(10, 20, b"a")})
    assert departure(known, known, 60) == 60
    assert departure(known | {Lapse(60, 90, b"a")}, known, 60) == 60, "it was started again"
    assert departure(known | {Lapse(40, 50, b"a")}, known, 60) == 50, "it was restored"
    assert departure(known | {Lapse(40, 90, b"a")}, known, 60) == 60, "it was, and writes nothing so old"
    assert departure(frozenset({Lapse(5, 30, b"a"), Lapse(32, 34, b"a")}), known, 60) == 30
    assert departure(NO_LAPSES, known, 60) == 60
    assert departure(known | {Lapse(10, 20, b"b")}, known, 60) == 20, "its clock stood still"
