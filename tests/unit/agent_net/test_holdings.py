"""Holdings that follow changes are those of the same elements taken anew."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.net.elements import Element
from agent.net.holdings import Holdings

ELEMENTS = st.builds(
    Element,
    st.just("inet"),
    st.just("taps"),
    st.tuples(st.sampled_from("abc")),
    st.sampled_from(["n1", "n2"]),
    st.sampled_from(["", "p1", "p2"]),
    data=st.sampled_from(["", "jump x", "jump y"]),
)
SETS = st.frozensets(ELEMENTS, max_size=8)


@given(SETS, st.lists(st.tuples(SETS, SETS), max_size=8))
def test_after_any_history_they_are_what_is_there(
    first: frozenset[Element], history: list[tuple[frozenset[Element], frozenset[Element]]]
) -> None:
    held, there = Holdings(first), first
    for stale, missing in history:
        held, there = held.changed(stale, missing), (there - stale) | missing
        assert set(held) == set(there)
        assert len(held) == len(there)
        assert held.targets == Counter(one.target for one in there if one.target)
        for network in ("n1", "n2"):
            assert set(held.of_network(network)) == {one for one in there if one.network_uid == network}
