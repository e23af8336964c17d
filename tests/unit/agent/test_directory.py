"""What the leader tells of ports elsewhere: kept, and turned into works until the node is as told."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from agent.actions import EnsureDirectory, EnsureGroup, Need, RemoveGroup, Work, network_key
from agent.diff import diff
from agent.directory import Directory
from agent.intent import parse_plan
from agent.memory import Memory
from agent.net.directory import digest_of_directory
from agent.net.driver import GroupIntent, ObservedNet, ObservedNetwork, digest_of_group
from agent.observed import Observed
from agent.storage.driver import ObservedStorage
from cumulet.v1 import agent_pb2 as pb
from tests.unit.agent.build import instance, plan, uid

NETWORK, GROUP, OTHER = uid(2, 1), uid(4, 1), uid(4, 2)
PORTS = st.dictionaries(st.integers(1, 5), st.integers(1, 3), max_size=4)  # what each of them has
RULE = pb.PlannedRule(id="sgr-1-4", ip_version=4, remote_group_uid=OTHER)


def remote(number: int) -> pb.PlannedRemotePort:
    mac, address = f"02:00:00:00:00:{number:02x}", f"10.0.0.{number}"
    return pb.PlannedRemotePort(uid=uid(3, number), mac=mac, addresses=[address], vtep="192.0.2.2")


def told(*pieces: pb.NetworkDirectory | pb.GroupDirectory) -> Directory:
    directory = Directory()
    for piece in pieces:
        if isinstance(piece, pb.NetworkDirectory):
            directory.take(pb.DirectoryChange(networks=[piece]))
        else:
            directory.take(pb.DirectoryChange(groups=[piece]))
    return directory


def full(*numbers: int) -> pb.NetworkDirectory:
    return pb.NetworkDirectory(network_uid=NETWORK, full=True, put=[remote(number) for number in numbers])


def members(*addresses: str, full: bool = True) -> pb.GroupDirectory:
    put = [pb.PlannedMember(port_uid=uid(5, number), addresses=[one]) for number, one in enumerate(addresses)]
    return pb.GroupDirectory(group_uid=OTHER, full=full, put=put)


def seen_net(directories: dict[str, str] | None = None, groups: dict[str, str] | None = None) -> ObservedNet:
    networks = {NETWORK: ObservedNetwork(NETWORK, True, "")}
    net = ObservedNet(networks, {}, frozenset(), ())
    return replace(net, directories=directories or {}, groups=groups or {})


def works_of(directory: Directory, net: ObservedNet, *, in_session: bool = True) -> list[Work]:
    made = plan(instance(1, networks=(1,)), networks=(1,))
    made.security_groups.add(uid=GROUP, rules=[RULE])
    seen = Observed({}, ObservedStorage({}, frozenset(), 2**40), net)
    decision = diff(parse_plan(made), seen, Memory(), 0.0, directory=directory, in_session=in_session)
    kinds = (EnsureDirectory, EnsureGroup, RemoveGroup)
    return [work for work in decision.works if isinstance(work.actions[-1], kinds)]


def groups_of(works: list[Work]) -> list[GroupIntent]:
    return [action.group for work in works for action in work.actions if isinstance(action, EnsureGroup)]


def test_what_is_told_replaces_adds_and_removes() -> None:
    news = pb.NetworkDirectory(network_uid=NETWORK, put=[remote(3)], gone_port_uids=[uid(3, 1)])
    directory = told(full(1, 2), news)
    found = directory.find_remotes(NETWORK)
    assert found is not None
    assert {port.uid for port in found} == {uid(3, 2), uid(3, 3)}
    directory.take(pb.DirectoryChange(networks=[full(4)]))
    assert {port.uid for port in directory.find_remotes(NETWORK) or ()} == {uid(3, 4)}
    assert directory.find_remotes(uid(2, 9)) is None


@given(st.lists(st.tuples(st.booleans(), st.booleans(), PORTS, PORTS), max_size=10))
def test_what_is_kept_after_any_history_is_what_was_told_last(
    history: list[tuple[bool, bool, dict[int, int], dict[int, int]]],
) -> None:
    """Ports of two networks may have the same address, so a group's member may stay when one of them goes.

    It is asked for now and then: what was told in between has piled up.
    """
    directory, last = Directory(), dict[int, int]()
    for is_full, is_asked, gone, put in history:
        gone_uids = [uid(3, number) for number in gone]
        network = pb.NetworkDirectory(network_uid=NETWORK, full=is_full, gone_port_uids=gone_uids)
        group = pb.GroupDirectory(group_uid=OTHER, full=is_full, gone_port_uids=gone_uids)
        for number, at in put.items():
            network.put.add().CopyFrom(remote(at))
            network.put[-1].uid = uid(3, number)
            group.put.add(port_uid=uid(3, number), addresses=[f"10.0.0.{at}", "fd00::1"])
        directory.take(pb.DirectoryChange(networks=[network], groups=[group]))
        last = {number: at for number, at in last.items() if not is_full and number not in gone} | put
        if not is_asked:
            continue
        anew = told(full(), members())
        anew.take(pb.DirectoryChange(networks=[_retold(last)], groups=[_regrouped(last)]))
        remotes, found = directory.find_remotes(NETWORK), directory.find_members(OTHER)
        assert remotes == anew.find_remotes(NETWORK)
        assert found == anew.find_members(OTHER)
        assert remotes is not None
        assert found is not None
        assert digest_of_directory(remotes) == digest_of_directory(frozenset(remotes))
        group_now = GroupIntent(OTHER, (), found)
        assert digest_of_group(group_now) == digest_of_group(replace(group_now, members=frozenset(found)))


def _retold(ports: dict[int, int]) -> pb.NetworkDirectory:
    piece = pb.NetworkDirectory(network_uid=NETWORK, put=[remote(at) for at in ports.values()])
    for entry, number in zip(piece.put, ports, strict=True):
        entry.uid = uid(3, number)
    return piece


def _regrouped(ports: dict[int, int]) -> pb.GroupDirectory:
    piece = pb.GroupDirectory(group_uid=OTHER)
    for number, at in ports.items():
        piece.put.add(port_uid=uid(3, number), addresses=[f"10.0.0.{at}", "fd00::1"])
    return piece


def test_a_bad_entry_is_refused_alone_and_heals() -> None:
    bad = remote(2)
    bad.mac = "nothing"
    piece = pb.NetworkDirectory(network_uid=NETWORK, full=True, put=[remote(1), bad])
    directory = told(piece)
    assert {port.uid for port in directory.find_remotes(NETWORK) or ()} == {uid(3, 1)}
    assert directory.refusals[uid(3, 2)].reason == "BadDirectory"
    directory.take(pb.DirectoryChange(networks=[full(1, 2)]))
    assert not directory.refusals


def test_a_directory_is_made_after_its_network_and_only_where_it_differs() -> None:
    directory = told(full(1), members())
    remotes = directory.find_remotes(NETWORK)
    assert remotes is not None
    work = works_of(directory, seen_net(directories={NETWORK: "other"}))[0]
    assert work.actions == (Need(network_key(NETWORK)), EnsureDirectory(NETWORK, remotes))
    same = seen_net(directories={NETWORK: digest_of_directory(remotes)})
    assert all(not isinstance(work.actions[-1], EnsureDirectory) for work in works_of(directory, same))


def test_nothing_told_means_that_what_is_there_stays() -> None:
    net = seen_net(directories={NETWORK: "something"})
    assert not any(isinstance(work.actions[-1], EnsureDirectory) for work in works_of(Directory(), net))
    assert works_of(told(full(1)), net, in_session=False) == []


def test_a_group_is_made_with_the_members_of_those_that_it_refers_to() -> None:
    directory = told(members("10.0.0.5", "fd00::5"))
    wanted = {group.uid: group for group in groups_of(works_of(directory, seen_net()))}
    assert wanted.keys() == {GROUP, OTHER}
    assert wanted[OTHER].members == {ip_address("10.0.0.5"), ip_address("fd00::5")}
    assert wanted[OTHER].rules == ()
    assert [rule.remote_group for rule in wanted[GROUP].rules] == [OTHER]
    done = {uid_: digest_of_group(group) for uid_, group in wanted.items()}
    assert works_of(directory, seen_net(groups=done)) == []


def test_a_change_of_members_is_one_work() -> None:
    directory = told(members("10.0.0.5"))
    done = {group.uid: digest_of_group(group) for group in groups_of(works_of(directory, seen_net()))}
    directory.take(pb.DirectoryChange(groups=[members("10.0.0.6", full=False)]))
    (group,) = groups_of(works_of(directory, seen_net(groups=done)))
    assert group.members == {ip_address("10.0.0.6")}


def test_a_group_that_nothing_here_uses_goes_in_a_session_only() -> None:
    directory = told(members())
    stray = uid(4, 9)
    assert Work(f"group/{stray}", (RemoveGroup(stray),)) in works_of(directory, seen_net(groups={stray: "x"}))
    assert works_of(directory, seen_net(groups={stray: "x"}), in_session=False) == []
