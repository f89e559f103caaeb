"""Histograms of durations: what is counted where, and what is told of it."""

from hypothesis import given
from hypothesis import strategies as st

from merklekv.core import REFERENCES
from merklekv.histogram import Durations, Histogram

DURATIONS = st.lists(st.floats(0, 1e5), max_size=50)


def filled(durations: list[float]) -> Histogram:
    made = Histogram()
    for seconds in durations:
        made.observe(seconds)
    return made


@given(DURATIONS)
def test_every_duration_is_below_the_limit_of_its_bucket_and_not_of_the_one_before(durations: list[float]) -> None:
    made = filled(durations)
    assert made.count == len(durations)
    for limit, count in made.cumulative():
        assert count == sum(int(1e6 * seconds) < limit for seconds in durations)
    limits = [1 << number for number in range(30)]
    *counts, total = made.below(30)
    assert counts == [sum(int(1e6 * seconds) < limit for seconds in durations) for limit in limits]
    assert total == len(durations)


@given(DURATIONS, DURATIONS)
def test_the_difference_of_a_sum_is_what_was_added(first: list[float], second: list[float]) -> None:
    one, other = filled(first), filled(second)
    both = one + other
    assert both.count == len(first) + len(second)
    assert list((both - one).cumulative()) == list(other.cumulative())
    assert list((both - both).cumulative()) == []


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50), st.sampled_from([0.5, 0.99, 0.999]))
def test_a_quantile_is_the_limit_of_the_bucket_it_is_in(durations: list[float], share: float) -> None:
    limit = filled(durations).quantile(share)
    assert sum(int(1e6 * seconds) < limit for seconds in durations) >= share * len(durations)
    assert limit == 1 or sum(int(1e6 * seconds) < limit // 2 for seconds in durations) < share * len(durations)


def test_a_batch_counts_each_of_its_requests() -> None:
    made = Histogram()
    made.observe(3e-6, 100)
    assert (made.count, list(made.cumulative()), round(made.seconds, 9)) == (100, [(4, 100)], 0.0003)
    assert Histogram().quantile(0.5) == 0


@given(st.lists(st.tuples(st.floats(0, 1e12), st.integers(1, 1000)), max_size=30))
def test_the_core_counts_like_its_reference(observed: list[tuple[float, int]]) -> None:
    twin, reference = Durations(), REFERENCES["Durations"]()
    for seconds, count in observed:
        for one in (twin, reference):
            one.observe(seconds, count)
    assert (twin.counts(), twin.seconds) == (reference.counts(), reference.seconds)
    for one in (twin, reference):
        one.add(list(range(40)), 1.5)
    assert (twin.counts(), twin.seconds) == (reference.counts(), reference.seconds)
