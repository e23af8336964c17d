"""What /metrics shows: the libvirt exporters' names, this agent's own work, and the last sample in need.

**Edge**: a loopback socket; promtool (Debian: prometheus) judges the text.
"""

from __future__ import annotations

import asyncio
import subprocess
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from agent.errors import DriverError
from agent.hypervisor.driver import DiskStats, DomainStats, NicStats
from agent.metrics import AgentCollector, MetricsServer, Sample, Sampler
from tests.sim.loop import LoopClock

from .build import uid
from .lab import IDENTITY, Lab, in_lab
from .test_agent import run_one

SAMPLE = Sample(
    taken_at=0.0,
    domains=(
        DomainStats(
            uid(1, 1), 1.5, 2, 2**28, 2**27, (DiskStats("vda", 1, 2, 3, 4),), (NicStats("tap1", 5, 6, 7, 8),)
        ),
    ),
    names={uid(1, 1): ("web", "shop")},
    states={"running": 1},
    results={("StartDomain", "ok"): 1},
    failures=0,
    rounds=3,
    round_s=0.25,
    session=True,
    sessions=1,
)


class _Given(Sampler):
    """A sampler with a sample; `late` never answers."""

    def __init__(self, *, late: bool) -> None:
        self._late = late
        self.last = SAMPLE

    async def sample(self) -> Sample:
        if self._late:
            await asyncio.Event().wait()
        return SAMPLE


async def scrape(sampler: Sampler) -> str:
    server = MetricsServer("127.0.0.1", 0, AgentCollector(sampler, IDENTITY, asyncio.get_running_loop()))
    try:
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{server.port}/metrics")
    finally:
        await asyncio.to_thread(server.close)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: bytes = response.read()
        return text.decode()


async def test_guests_are_shown_under_the_exporters_names_and_promtool_has_no_complaint() -> None:
    text = await scrape(_Given(late=False))
    families = text_string_to_metric_families(text)
    values = {sample.name: sample.value for family in families for sample in family.samples}
    assert values["libvirt_domain_info_cpu_time_seconds_total"] == 1.5
    assert values["libvirt_domain_block_stats_write_requests_total"] == 4
    assert values["libvirt_domain_interface_stats_transmit_bytes_total"] == 6
    assert values["cumulet_agent_session_open"] == 1
    assert f'domain="{uid(1, 1)}",instance_name="web",project="shop",target_device="vda"' in text
    check = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text.encode(), capture_output=True
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")


async def test_a_hung_driver_costs_fresh_figures_and_not_the_scrape() -> None:
    assert "libvirt_domain_info_virtual_cpus" in await scrape(_Given(late=True))


def test_samples_are_taken_at_a_bounded_rate() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        assert lab.agent is not None
        assert lab.uplink is not None
        sampler = Sampler(lab.agent, lab.uplink, LoopClock())
        first = await sampler.sample()
        assert first.states == {"running": 1}
        assert [domain.uid for domain in first.domains] == [uid(1, 1)]
        assert first.results["StartDomain", "ok"] == 1
        assert first.net is not None
        assert first.net.ports.keys() == first.net_names.ports.keys()
        assert await sampler.sample() is first
        lab.machine.stop_libvirtd()
        await asyncio.sleep(6)
        without = await sampler.sample()
        assert without.domains == ()
        assert without.net == first.net
        lab.kernel.fail_next("net_stats", DriverError("NetworkEffectFailed", "planted"))
        await asyncio.sleep(6)
        assert (await sampler.sample()).net is None
        await asyncio.sleep(6)
        assert (await sampler.sample()).net == first.net

    in_lab(scenario)
