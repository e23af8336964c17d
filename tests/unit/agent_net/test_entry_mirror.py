"""What the kernel holds of directories, kept from a listing and its events; and digests from both sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from agent.net.directory import EntryMirror, Spot, digest_of_directory, entries_of, hash_of, render_digest
from agent.net.driver import RemotePort
from agent.net.netlink_neighbour import Entry, Neighbour, PortEntry, TunnelEntry
from tests.unit.agent_net.cases import FEWER, directories

SPOT, OTHER = Spot(2, 5), Spot(3, 6)
NOBODY, SOMEBODY = "00:00:00:00:00:00", "52:54:00:00:00:09"
HERE, THERE = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
MACS = st.sampled_from([NOBODY, SOMEBODY, "52:54:00:00:00:0a"])
ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.builds(PortEntry, st.just(2), MACS, st.sampled_from([5, 9]), st.booleans()),
    st.builds(PortEntry, st.just(3), MACS, st.sampled_from([6, 10]), st.booleans()),
    st.builds(TunnelEntry, st.sampled_from([5, 6]), MACS, st.sampled_from([HERE, THERE])),
    st.builds(Neighbour, st.sampled_from([2, 3]), st.sampled_from([HERE, THERE]), MACS, st.booleans()),
)


@FEWER
@given(directories())
def test_a_directory_in_the_kernel_has_the_digest_of_what_was_asked(remotes: frozenset[RemotePort]) -> None:
    mirror = EntryMirror(entries_of(remotes, SPOT))
    assert render_digest(mirror.hash_at(SPOT)) == digest_of_directory(remotes)
    assert mirror.entries_at(SPOT) == entries_of(remotes, SPOT)
    assert mirror.vteps_at(SPOT) == Counter(remote.vtep for remote in remotes)
    assert mirror.hash_at(OTHER) == 0


@FEWER
@given(directories())
def test_every_part_of_a_remote_port_but_its_uid_counts(remotes: frozenset[RemotePort]) -> None:
    digest = digest_of_directory(remotes)
    for remote in remotes:
        others = remotes - {remote}
        assert digest_of_directory(others | {replace(remote, uid="another")}) == digest
        for changed in (
            replace(remote, mac="52:54:ff:ff:ff:ff"),
            replace(remote, vtep=IPv4Address("198.51.100.9")),
            replace(remote, addresses=(*remote.addresses, IPv4Address("198.51.100.9"))),
        ):
            assert digest_of_directory(others | {changed}) != digest


@given(st.lists(st.tuples(st.booleans(), ENTRIES), max_size=30))
def test_hashes_and_counts_by_events_are_those_of_what_is_there(
    history: list[tuple[bool, Entry]],
) -> None:
    mirror = EntryMirror()
    for is_there, entry in history:
        mirror.apply(is_there, entry)
    for spot in (SPOT, OTHER):
        entries = mirror.entries_at(spot)
        tunnels = [entry for entry in entries if isinstance(entry, TunnelEntry)]
        assert mirror.hash_at(spot) == hash_of(entries)
        assert mirror.vteps_at(spot) == Counter(entry.vtep for entry in tunnels)
        assert len({entry.mac for entry in tunnels if entry.mac != NOBODY}) == len(
            [entry for entry in tunnels if entry.mac != NOBODY]
        )
        assert all(entry.permanent for entry in entries if isinstance(entry, Neighbour))


def test_an_entry_that_moved_is_not_removed_by_the_old_place_s_end() -> None:
    mirror = EntryMirror([PortEntry(2, SOMEBODY, 5, True), TunnelEntry(5, SOMEBODY, HERE)])
    mirror.apply(True, PortEntry(2, SOMEBODY, 9, True))
    mirror.apply(False, PortEntry(2, SOMEBODY, 5, True))
    mirror.apply(True, TunnelEntry(5, SOMEBODY, THERE))
    mirror.apply(False, TunnelEntry(5, SOMEBODY, HERE))
    assert mirror.ports[2][SOMEBODY].link == 9
    assert mirror.vteps_at(SPOT) == {THERE: 1}


def test_frames_for_everybody_may_go_to_several_nodes() -> None:
    mirror = EntryMirror([TunnelEntry(5, NOBODY, HERE), TunnelEntry(5, NOBODY, THERE)])
    assert mirror.vteps_at(SPOT) == {HERE: 1, THERE: 1}
    mirror.apply(False, TunnelEntry(5, NOBODY, HERE))
    assert mirror.entries_at(SPOT) == {TunnelEntry(5, NOBODY, THERE)}
