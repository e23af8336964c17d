"""What a node with very many networks needs of its kernel."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.net import sysctl
from tests.unit.agent_net.lab import network_intent, open_lab

INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
KERNEL_DEFAULT = "128"


async def test_a_new_network_has_room_for_its_server() -> None:
    """With the kernel's default the 127th network had no DHCP."""
    async with open_lab() as lab:
        net = lab.driver()
        await asyncio.to_thread(INSTANCES.write_text, KERNEL_DEFAULT)
        await net.ensure_network(network_intent())
        assert int(await asyncio.to_thread(INSTANCES.read_text)) >= sysctl.SERVERS_MAX
        await net.close()
