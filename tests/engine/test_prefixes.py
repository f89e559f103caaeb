"""Things by prefix, against a list that is looked through."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.prefixes import Prefixes

words = st.text("ab", max_size=4).map(str.encode)


@given(
    things=st.sets(st.tuples(words, st.integers(0, 2)), max_size=30),
    gone=st.sets(st.tuples(words, st.integers(0, 2)), max_size=30),
    keys=st.lists(words | st.text("ab", max_size=40).map(str.encode), max_size=30),
)
def test_all_that_match_and_no_other(
    things: set[tuple[bytes, int]], gone: set[tuple[bytes, int]], keys: list[bytes]
) -> None:
    prefixes: Prefixes[int] = Prefixes()
    for prefix, thing in things:
        prefixes.add(prefix, thing)
    for prefix, thing in gone:
        assert prefixes.remove(prefix, thing) == ((prefix, thing) in things)
    left = things - gone
    assert bool(prefixes.by_length) == bool(left)
    assert sorted(prefixes) == sorted({prefix for prefix, _ in left})
    for prefix, _ in things | gone:
        assert prefixes.under(prefix) == {thing for other, thing in left if other == prefix}
    assert prefixes.matching(keys) == {prefix for prefix in prefixes if any(key.startswith(prefix) for key in keys)}
    for key in keys:
        assert prefixes.matching([key]) == {prefix for prefix in prefixes if key.startswith(prefix)}
