"""Scenarios of the whole agent over the fakes, on virtual time, with a leader of a few lines.

**Edge** in appearance only: nothing leaves the process.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from agent.errors import DriverError, DriverUnavailableError
from agent.net.names import tap_name
from agent.report import FULL_REPORT_EVERY_S
from cumulet.v1 import agent_pb2 as pb
from tests.sim.link import Faults, Listener

from .build import DISK, KERNEL, instance, plan, uid
from .lab import ADDRESS, Lab, TinyLeader, in_lab

RUNNING, OFF, ABSENT = pb.DOMAIN_STATE_RUNNING, pb.DOMAIN_STATE_OFF, pb.DOMAIN_STATE_ABSENT
CRASHED = pb.DOMAIN_STATE_CRASHED


async def run_one(lab: Lab, number: int = 1) -> None:
    """A started agent with one running instance."""
    lab.start()
    await lab.leader.set_plan(plan(instance(number)))
    await lab.until(lambda: lab.state(uid(1, number)) == RUNNING)


def test_an_instance_is_made_and_deleted_without_a_trace() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        spec = lab.machine.domains[uid(1, 1)].spec
        assert [nic.tap for nic in spec.nics] == [tap_name(uid(3, 9))]
        assert spec.boot is not None
        assert spec.boot.kernel_path.endswith(KERNEL.sha256)
        await lab.leader.set_plan(plan(tombstones={1: 1}))
        await lab.until(lambda: lab.state(uid(1, 1)) == ABSENT)
        assert not lab.machine.domains
        assert not lab.disk.disks
        await lab.until(lambda: not lab.kernel._taps and not lab.kernel._networks)

    in_lab(scenario)


def test_many_instances_are_made_at_once_and_one_that_fails_is_told() -> None:
    async def scenario(lab: Lab) -> None:
        lab.machine.boot_s = 1.0
        error = DriverError("DiskFull", "no room for the disk; free some")
        for _ in range(100):
            lab.disk.fail_next("ensure_disk", error, name=uid(1, 3))
        lab.start()
        await lab.leader.set_plan(plan(*(instance(n) for n in range(1, 11))))
        others = [uid(1, n) for n in range(1, 11) if n != 3]
        await lab.until(lambda: all(lab.state(other) == RUNNING for other in others))
        assert asyncio.get_running_loop().time() < 10
        failed = lab.leader.instances[uid(1, 3)]
        assert (failed.reason, failed.message) == ("DiskFull", error.message)

    in_lab(scenario)


def test_a_failure_that_passes_is_tried_again_and_forgotten() -> None:
    async def scenario(lab: Lab) -> None:
        lab.machine.fail_next("ensure_running", DriverError("StartFailed", "once"))
        lab.kernel.fail_next("ensure_network", DriverError("NetlinkFailed", "once"))
        await run_one(lab)
        await lab.until(lambda: lab.leader.instances[uid(1, 1)].reason == "")

    in_lab(scenario)


def test_a_restart_of_the_agent_touches_nothing_and_keeps_the_network_repaired() -> None:
    """I5, I4: without a controller the tap and the DHCP server come back, and nothing else happens."""

    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        pids = lab.machine.pids()
        await lab.kill()
        await lab.link.stop(ADDRESS)
        lab.kernel.flush_network(uid(2, 1))
        lab.kernel.lose_tap(uid(3, 9))
        lab.start()
        await lab.until(lambda: uid(3, 9) in lab.kernel._taps and lab.kernel._networks[uid(2, 1)].complete)
        assert lab.machine.pids() == pids
        lab.machine.crash(uid(1, 1))
        await asyncio.sleep(60)
        assert not lab.machine.running(), "nothing is started without a session's plan"

    in_lab(scenario)


def test_after_a_reboot_of_the_machine_the_instance_starts_when_the_leader_says_so() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        await lab.kill()
        lab.machine.reboot_host()
        lab.kernel.reboot()
        lab.start()
        await lab.until(lambda: lab.machine.running() == [(uid(1, 1), 1)])
        await lab.until(lambda: lab.state(uid(1, 1)) == RUNNING)

    in_lab(scenario)


def test_an_older_plan_is_refused_after_a_restart() -> None:
    """I7: a leader that lags behind what the agent acted on starts nothing."""

    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        await lab.leader.set_plan(plan(tombstones={1: 1}))
        await lab.until(lambda: lab.state(uid(1, 1)) == ABSENT)
        await lab.kill()
        lab.leader.plan = plan(instance(1), revision=2)
        lab.start()
        await asyncio.sleep(60)
        assert not lab.machine.domains
        told = [
            c for report in lab.leader.reports for c in report.node_conditions if c.reason == "PlanRefused"
        ]
        assert "older" in told[-1].message

    in_lab(scenario)


def test_plans_of_another_node_or_session_are_refused() -> None:
    async def scenario(lab: Lab) -> None:
        lab.start()
        await lab.until(lambda: bool(lab.leader.reports))
        await lab.leader.set_plan(plan(instance(1), node="n2"))
        stray = plan(instance(1), nonce="another", revision=9)
        await lab.leader.send(pb.ControllerMessage(plan=stray))
        await asyncio.sleep(60)
        assert not lab.machine.domains
        assert not lab.disk.disks

    in_lab(scenario)


def test_a_lost_session_ends_starts_until_the_next_ones_plan() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        lab.leader.silent = True
        await lab.until(lambda: lab.uplink is not None and not lab.uplink.welcomed)
        lab.link.unreachable.add(ADDRESS)
        lab.machine.crash(uid(1, 1))
        await asyncio.sleep(30)
        assert not lab.machine.running()
        lab.leader.silent = False
        lab.link.unreachable.clear()
        await lab.until(lambda: lab.machine.running() == [(uid(1, 1), 1)])
        nonces = [hello.session_nonce for hello in lab.leader.hellos]
        assert len(set(nonces)) == len(nonces) > 1
        assert lab.leader.hellos[-1].accepted.revision == 2

    in_lab(scenario)


def test_a_redirect_leads_to_the_leader_and_a_dead_leader_back_to_the_list() -> None:
    async def scenario(lab: Lab) -> None:
        async def redirect(end: object) -> None:
            assert hasattr(end, "receive")
            assert hasattr(end, "send")
            await end.receive()
            await end.send(pb.ControllerMessage(redirect=pb.Redirect(leader_address=ADDRESS)))

        lab.link.serve("c2:7443", Listener(redirect))
        lab.addresses = ("c2:7443",)
        await run_one(lab)
        await lab.link.stop(ADDRESS)
        second = TinyLeader(plan=lab.leader.plan)
        lab.link.serve("c2:7443", Listener(second.accept))
        await lab.until(lambda: bool(second.reports))
        assert second.reports[0].full
        assert [seen.state for seen in second.reports[0].instances] == [RUNNING]

    in_lab(scenario)


def test_stop_asks_the_guest_and_cuts_a_deaf_one_at_the_deadline() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        lab.machine.deaf_guests.add(uid(1, 1))
        await lab.leader.set_plan(plan(instance(1, on=False, stop_timeout_s=30)))
        await lab.until(lambda: lab.state(uid(1, 1)) == pb.DOMAIN_STATE_SHUTTING_DOWN)
        started = asyncio.get_running_loop().time()
        await lab.until(lambda: lab.state(uid(1, 1)) == OFF)
        assert 29 < asyncio.get_running_loop().time() - started < 32
        assert lab.leader.instances[uid(1, 1)].reason == "ForcedOff"
        await lab.leader.set_plan(plan(instance(1, boots=2)))
        await lab.until(lambda: lab.leader.instances[uid(1, 1)].boots == 2)

    in_lab(scenario)


def test_reboot_is_one_new_boot() -> None:
    async def scenario(lab: Lab) -> None:
        lab.machine.shutdown_s = 3.0
        await run_one(lab)
        pid = lab.machine.pids()[uid(1, 1)]
        await lab.leader.set_plan(plan(instance(1, boots=2)))
        await lab.until(lambda: lab.leader.instances[uid(1, 1)].boots == 2)
        assert lab.machine.pids() == {uid(1, 1): pid + 1}

    in_lab(scenario)


def test_a_crash_restarts_and_a_crash_loop_ends() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        for restarts in range(1, 6):
            lab.machine.crash(uid(1, 1))
            await lab.until(lambda: bool(lab.machine.running()))
            await asyncio.sleep(1)
            assert lab.leader.instances[uid(1, 1)].restarts == restarts
        lab.machine.crash(uid(1, 1))
        await lab.until(lambda: lab.leader.instances[uid(1, 1)].reason == "CrashLoop")
        assert lab.state(uid(1, 1)) == CRASHED
        await lab.leader.set_plan(plan(instance(1, boots=2)))
        await lab.until(lambda: lab.state(uid(1, 1)) == RUNNING)

    in_lab(scenario)


def test_a_guest_that_powers_itself_off_stays_off() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        lab.machine.power_off_by_guest(uid(1, 1))
        await lab.until(lambda: lab.state(uid(1, 1)) == OFF)
        await asyncio.sleep(120)
        assert not lab.machine.running()
        assert lab.leader.instances[uid(1, 1)].reason == "GuestPoweredOff"

    in_lab(scenario)


def test_an_instance_planned_off_is_prepared_and_off() -> None:
    async def scenario(lab: Lab) -> None:
        lab.start()
        await lab.leader.set_plan(plan(instance(1, on=False, boots=0)))
        await lab.until(lambda: lab.state(uid(1, 1)) == OFF)
        assert lab.leader.instances[uid(1, 1)].reason == "NotStarted"
        assert not lab.machine.domains

    in_lab(scenario)


def test_while_libvirtd_is_down_nothing_is_claimed_and_nothing_is_done() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        pids = lab.machine.pids()
        lab.machine.stop_libvirtd()
        await lab.leader.set_plan(plan(tombstones={1: 1}))
        await asyncio.sleep(60)
        assert lab.state(uid(1, 1)) == RUNNING
        assert lab.disk.disks
        assert lab.machine.pids() == pids
        told = [
            c for report in lab.leader.reports for c in report.node_conditions if c.type == "HypervisorReady"
        ]
        assert told[-1].reason == "LibvirtUnavailable"
        lab.machine.start_libvirtd()
        await lab.until(lambda: lab.state(uid(1, 1)) == ABSENT)

    in_lab(scenario)


def test_an_action_that_finds_libvirtd_down_is_no_failure_of_the_instance() -> None:
    async def scenario(lab: Lab) -> None:
        lab.machine.fail_next("ensure_running", DriverUnavailableError("LibvirtUnavailable", "restarting"))
        await run_one(lab)
        assert not any(seen.reason for report in lab.leader.reports for seen in report.instances)

    in_lab(scenario)


def test_an_unknown_domain_is_reported_and_never_touched() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        await lab.leader.set_plan(plan(instance(2)))
        await lab.until(lambda: lab.state(uid(1, 2)) == RUNNING and uid(1, 1) in lab.leader.unknown)
        await asyncio.sleep(120)
        assert lab.leader.unknown[uid(1, 1)].state == RUNNING
        assert [key for key, _ in lab.machine.running()] == [uid(1, 1), uid(1, 2)]
        ports = lab.kernel._networks[uid(2, 1)].intent.ports
        assert [port.uid for port in ports] == [uid(3, 9), uid(3, 17)]

    in_lab(scenario)


def test_reports_are_full_at_first_and_now_and_then_and_else_only_changes() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        await asyncio.sleep(5)
        settled = len(lab.leader.reports)
        await asyncio.sleep(FULL_REPORT_EVERY_S * 0.7)
        assert len(lab.leader.reports) == settled, "nothing changed, nothing is said"
        await asyncio.sleep(FULL_REPORT_EVERY_S)
        assert [report.full for report in lab.leader.reports[settled:]][:1] == [True]
        assert lab.leader.reports[0].full
        assert lab.leader.reports[-1].acted_on == lab.leader.plan.version

    in_lab(scenario)


def test_a_download_for_a_deleted_instance_is_cancelled() -> None:
    async def scenario(lab: Lab) -> None:
        lab.disk.copy_s = 600.0
        lab.start()
        await lab.leader.set_plan(plan(instance(1)))
        await asyncio.sleep(5)
        await lab.leader.set_plan(plan(tombstones={1: 1}))
        await lab.until(lambda: lab.state(uid(1, 1)) == ABSENT)
        assert asyncio.get_running_loop().time() < 60
        assert DISK.sha256 not in lab.disk.images

    in_lab(scenario)


def test_requests_are_answered() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        lab.disk.console_logs[uid(1, 1)] = b"one\ntwo\nthree\n"
        log = pb.ConsoleLogRequest(instance_uid=uid(1, 1), tail_lines=2)
        asked = [
            pb.AgentRequest(request_id="inventory", inventory=pb.InventoryRequest()),
            pb.AgentRequest(request_id="log", console_log=log),
            pb.AgentRequest(request_id="all", console_log=pb.ConsoleLogRequest(instance_uid=uid(1, 1))),
            pb.AgentRequest(request_id="bad", console_log=pb.ConsoleLogRequest(instance_uid="../../etc")),
            pb.AgentRequest(request_id="none"),
        ]
        for request in asked:
            await lab.leader.send(pb.ControllerMessage(request=request))
        await lab.until(lambda: len(lab.leader.replies) == len(asked))
        kinds = {item.kind for item in lab.leader.replies["inventory"].inventory.items}
        assert {"domain", "disk", "seed", "tap", "bridge"} <= kinds
        assert lab.leader.replies["log"].console_log == b"two\nthree\n"
        assert lab.leader.replies["all"].console_log == b"one\ntwo\nthree\n"
        assert "UUID" in lab.leader.replies["bad"].error
        assert lab.leader.replies["none"].error

    in_lab(scenario)


def test_a_console_carries_bytes_both_ways_and_ends_with_the_guest() -> None:
    async def scenario(lab: Lab) -> None:
        heard = bytearray()
        ended: list[str] = []

        async def console(end: object) -> None:
            assert hasattr(end, "receive")
            assert hasattr(end, "send")
            assert (await end.receive()).console_id == "k1"
            await end.send(pb.ConsoleData(data=b"hello"))
            while not ended:
                message = await end.receive()
                heard.extend(message.data)
                ended.extend([message.error] if message.error else [])

        lab.link.serve(ADDRESS, Listener(lab.leader.accept, console, lab.link._listeners[ADDRESS].files))
        await run_one(lab)
        wanted = pb.ConsoleRequest(console_id="k1", instance_uid=uid(1, 1))
        await lab.leader.send(pb.ControllerMessage(request=pb.AgentRequest(request_id="r", console=wanted)))
        await lab.until(lambda: heard.endswith(b"hello"))
        lab.machine.power_off_by_guest(uid(1, 1))
        await lab.until(lambda: bool(ended))
        assert lab.leader.replies["r"].error == ""

    in_lab(scenario)


@pytest.mark.parametrize("seed", range(12))
def test_a_bad_link_and_any_order_of_tasks_still_converge(seed: int) -> None:
    """Messages are lost, doubled and late, sessions break; the node ends as planned."""

    async def scenario(lab: Lab) -> None:
        lab.start()
        for step in range(6):
            await lab.leader.set_plan(plan(*(instance(n, boots=1 + step % 2) for n in range(1, 4))))
            await asyncio.sleep(lab.link.faults.rng.uniform(0, 20))
            await lab.link.cut(ADDRESS)
        lab.link.faults.drop = lab.link.faults.duplicate = 0.0
        await lab.leader.set_plan(plan(instance(1, boots=3), instance(2, boots=3), tombstones={3: 1}))
        await lab.until(lambda: lab.machine.running() == [(uid(1, 1), 1), (uid(1, 2), 1)])
        await lab.until(lambda: all(lab.leader.instances[uid(1, n)].boots == 3 for n in (1, 2)))
        await lab.until(lambda: lab.state(uid(1, 3)) == ABSENT)

    in_lab(scenario, Faults(random.Random(seed), 0.05, 0.05, (0.0, 2.0)), seed)


def test_rounds_do_not_chase_each_other_while_something_fails() -> None:
    """What an instance needs fails for a minute: its tries and the usual looks are all the rounds."""

    async def scenario(lab: Lab) -> None:
        error = DriverError("Broken", "nothing helps")
        for _ in range(1000):
            lab.kernel.fail_next("ensure_network", error)
        lab.start()
        await lab.leader.set_plan(plan(instance(1)))
        await asyncio.sleep(60.0)
        assert lab.agent is not None
        assert 3 < lab.agent.rounds < 60

    in_lab(scenario)
