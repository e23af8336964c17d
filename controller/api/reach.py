"""Explains whether packets from one end to another arrive.

**Edge**: reads the State; asks nodes only when the question is about what is programmed, too.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv6Address, ip_address
from typing import Final

from controller.admit import common
from controller.admit.subnet import Address, addresses_of
from controller.controller import Controller
from controller.reach import come_in, find_near, reach_outside, reach_port
from controller.reach_balancer import (
    find_balancer,
    find_routed_balancer,
    reach_balancer,
    unanswered_outside,
)
from controller.reach_floating import find_floating, floating_to, reach_floating, reach_from_outside
from controller.reach_provider import address_for, find_on_segments, is_on_segment, reach_from_segment
from controller.reach_steps import Path, Step, Traffic
from controller.routed import find_routed
from controller.state import State
from controller.store import keys
from controller.verify import compare_inventory
from cumulet.errors import FieldViolation, InvalidArgumentError, NotFoundError, UnavailableError
from cumulet.names import DEFAULT_PROJECT
from cumulet.protocols import ICMP, PORT_MAX, WITH_PORTS, protocol_number
from cumulet.v1 import agent_pb2, port_pb2, reach_pb2

IP_VERSIONS: Final = (4, 6)


class ReachMethods:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def explain(self, request: reach_pb2.ExplainReachRequest) -> reach_pb2.ExplainReachResponse:
        """Raises InvalidArgumentError, NotFoundError; with `live` NotLeaderError, too."""
        response = explain_reach(self._controller.state, request)
        if request.live:
            await self._ask_nodes(response)
        return response

    async def _ask_nodes(self, response: reach_pb2.ExplainReachResponse) -> None:
        """Add what is on the way and not as planned."""
        sessions = self._controller.require_leading().sessions
        names = sorted({step.node for path in response.paths for step in path.steps} - {""})
        question = agent_pb2.AgentRequest(inventory=agent_pb2.InventoryRequest())
        replies = await asyncio.gather(
            *(sessions.ask(name, question) for name in names), return_exceptions=True
        )
        state = self._controller.state
        near = owners_on_the_way(state, response)
        for name, reply in zip(names, replies, strict=True):
            if isinstance(reply, agent_pb2.AgentReply):
                response.asked_nodes.append(name)
                found = compare_inventory(state, name, reply.inventory)
                response.differences.extend(one for one in found if one.owner_uid in near)
            elif isinstance(reply, UnavailableError):
                response.silent_nodes.append(name)
            else:
                raise reply


def owners_on_the_way(state: State, response: reach_pb2.ExplainReachResponse) -> set[str]:
    """Uids of the ports of the paths, of their networks, groups and routers. **Pure.**"""
    names = {step.name for path in response.paths for step in path.steps}
    ports = [row.message for row in state.rows(keys.PORTS).values() if row.message.meta.name in names]
    owners = {port.meta.uid for port in ports}
    for port in ports:
        project = port.meta.project
        rows = [state.find(keys.NETWORKS, project, port.spec.network)]
        rows += [state.find(keys.SECURITY_GROUPS, project, group) for group in port.spec.security_groups]
        rows.append(state.router_of(project, port.spec.network))
        owners |= {row.message.meta.uid for row in rows if row is not None}
    return owners


def explain_reach(state: State, request: reach_pb2.ExplainReachRequest) -> reach_pb2.ExplainReachResponse:
    """The answer for a request. **Pure.** Raises InvalidArgumentError, NotFoundError."""
    traffics = _traffics(request)
    project = request.project or DEFAULT_PROJECT
    common.get_row(state, keys.PROJECTS, project)
    source = _find_end(state, project, request.source, "source")
    target = _find_end(state, project, request.target, "target")
    if isinstance(source, port_pb2.Port):
        paths = [_path(state, source, target, traffic) for traffic in traffics]
    else:
        paths = _from_outside(state, project, source, target, traffics)
    if not request.ip_version:  # a version that one end does not have is no answer while there is another
        paths = [path for path in paths if path.source and path.target] or paths[:1]
    return _response(state, request, paths)


def _from_outside(
    state: State, project: str, source: Address, target: port_pb2.Port | Address, traffics: list[Traffic]
) -> list[Path]:
    """Within a provider network, by a floating IP, to an IPv6 address of an external network's range, or not
    at all. Raises InvalidArgumentError."""
    port = target if isinstance(target, port_pb2.Port) else find_on_segments(state, project, target)
    if port is not None and is_on_segment(state, port):
        return [_from_segment(state, source, target, port, traffics)]
    if isinstance(source, IPv6Address):
        return [_from_outside6(state, source, target, traffics)]
    if isinstance(target, port_pb2.Port):
        floating, told = floating_to(state, target), f"{target.meta.name} has no floating IP"
    else:
        floating, told = find_floating(state, target), f"{target} is no floating IP"
    if floating is None:
        text = f"{told} and is in no provider network: the outside ({source}) comes by nothing else"
        raise _refused("target", text)
    return [reach_from_outside(state, source, floating, _of_version(source, traffics))]


def _from_outside6(
    state: State, source: IPv6Address, target: port_pb2.Port | Address, traffics: list[Traffic]
) -> Path:
    own = [target] if not isinstance(target, port_pb2.Port) else map(ip_address, addresses_of(state, target))
    for address in own:
        port = find_routed(state, address) if isinstance(address, IPv6Address) else None
        if port is not None and isinstance(address, IPv6Address):
            return come_in(state, port, source, address, _of_version(source, traffics))
    balancer = None if isinstance(target, port_pb2.Port) else find_routed_balancer(state, target)
    if balancer is not None:
        traffic = _of_version(source, traffics)
        return Path(traffic.ip_version, str(source), str(target), (unanswered_outside(balancer),))
    name = target.meta.name if isinstance(target, port_pb2.Port) else f"{target}"
    text = f"{name} has no address of an external network's IPv6 range and is in no provider network"
    raise _refused("target", f"{text}: the outside ({source}) comes by nothing else")


def _of_version(source: Address, traffics: list[Traffic]) -> Traffic:
    found = next((one for one in traffics if one.ip_version == source.version), None)
    if found is None:
        raise _refused("ip_version", f"{source} is not of IPv{traffics[0].ip_version}")
    return found


def _from_segment(
    state: State,
    source: Address,
    target: port_pb2.Port | Address,
    port: port_pb2.Port,
    traffics: list[Traffic],
) -> Path:
    address = address_for(state, port, source) if isinstance(target, port_pb2.Port) else target
    traffic = next((one for one in traffics if one.ip_version == source.version), None)
    if traffic is None or address is None or address.version != source.version:
        text = f"{port.meta.name} has no IPv{source.version} address, or another version is asked for"
        raise _refused("source", f"{source}: {text}")
    return reach_from_segment(state, source, port, address, traffic)


def _path(state: State, source: port_pb2.Port, target: port_pb2.Port | Address, traffic: Traffic) -> Path:
    if isinstance(target, port_pb2.Port):
        return reach_port(state, source, target, traffic)
    balancer = find_balancer(state, source, target)
    if balancer is not None and target.version == traffic.ip_version:
        return reach_balancer(state, source, balancer, traffic)
    floating = find_floating(state, target)
    if floating is not None and traffic.ip_version == target.version:
        return reach_floating(state, source, floating, traffic)
    near = find_near(state, source, target)
    if near is None or target.version != traffic.ip_version:
        way = reach_outside(state, source, target, traffic)
        theirs = find_routed_balancer(state, target) if way.reachable else None
        if theirs is not None:
            way = replace(way, steps=(*way.steps[:-1], unanswered_outside(theirs)))
        return way
    return reach_port(state, source, near, traffic, target)


def _traffics(request: reach_pb2.ExplainReachRequest) -> list[Traffic]:
    word = request.protocol or ICMP
    if request.ip_version not in (0, *IP_VERSIONS):
        raise _refused("ip_version", f"{request.ip_version} is neither 4 nor 6 (0: both)")
    versions = (request.ip_version,) if request.ip_version else IP_VERSIONS
    traffics = []
    for version in versions:
        number = protocol_number(word, version)
        if number is None:
            raise _refused("protocol", f"{word!r} is not tcp, udp, sctp, icmp or a number from 1 to 255")
        if number in WITH_PORTS and not 1 <= request.port <= PORT_MAX:
            raise _refused("port", f"{word} goes to a port: give one from 1 to {PORT_MAX}")
        if number not in WITH_PORTS and request.port:
            raise _refused("port", f"protocol {word} has no ports")
        traffics.append(Traffic(version, number, request.port))
    return traffics


def _find_end(state: State, project: str, word: str, field: str) -> port_pb2.Port | Address:
    """An instance's first port, a port, or an address: of a load balancer or floating IP by name, or any."""
    instance = state.find(keys.INSTANCES, project, word)
    if instance is not None:
        uid = instance.message.spec.networks[0].port_uid
        found = state.find_uid(uid)
        if found is not None:
            port: port_pb2.Port = found[2].message
            return port
    row = state.find(keys.PORTS, project, word)
    if row is not None:
        named: port_pb2.Port = row.message
        return named
    balancer = state.find(keys.LOAD_BALANCERS, project, word)
    if balancer is not None:
        return ip_address(balancer.message.spec.address)
    floating = state.find(keys.FLOATING_IPS, project, word)
    if floating is not None:
        return ip_address(floating.message.spec.address)
    try:
        return ip_address(word)
    except ValueError:
        hints = [f"cumulet instance list --project {project}", f"cumulet port list --project {project}"]
        kinds = "instance, port, load balancer, floating IP or address"
        text = f"{field} {word!r} is no {kinds} in project {project}"
        raise NotFoundError(text, hints=hints) from None


def _response(
    state: State, request: reach_pb2.ExplainReachRequest, paths: list[Path]
) -> reach_pb2.ExplainReachResponse:
    reachable = any(path.reachable for path in paths)
    what = f"{request.protocol or ICMP}{f' port {request.port}' if request.port else ''}"
    verb = "reaches" if reachable else "does not reach"
    decided = next((path.steps[-1].message for path in paths if path.reachable == reachable), "")
    summary = f"{what} from {request.source} {verb} {request.target}" + ("" if reachable else f": {decided}")
    return reach_pb2.ExplainReachResponse(
        revision=state.revision,
        reachable=reachable,
        summary=summary,
        paths=[_path_message(path) for path in paths],
    )


def _path_message(path: Path) -> reach_pb2.ReachPath:
    return reach_pb2.ReachPath(
        ip_version=path.ip_version,
        source_address=path.source,
        target_address=path.target,
        reachable=path.reachable,
        steps=[_step_message(step) for step in path.steps],
    )


def _step_message(step: Step) -> reach_pb2.ReachStep:
    return reach_pb2.ReachStep(
        kind=step.kind,
        name=step.name,
        node=step.node,
        passes=step.passes,
        message=step.message,
        rule_id=step.rule_id,
    )


def _refused(field: str, text: str) -> InvalidArgumentError:
    return InvalidArgumentError.of("reach cannot be explained", [FieldViolation(field, text)])
