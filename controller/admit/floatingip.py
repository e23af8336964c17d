"""Admission of floating IPs: an address of an external network, and where its packets go.

**Pure.** A target may vanish later: the address is then held and announced by nobody.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.externalnetwork import choose_floating_address, taken_of
from controller.admit.project import charge_floating_ip
from controller.admit.provider import find_provider
from controller.balancers import version_of
from controller.commit import Change
from controller.floating import find_balancer, find_target, ipv4_of
from controller.state import State
from controller.store import keys
from controller.store.protocol import absent, range_unchanged_since, unchanged
from cumulet.protocols import PORT_MAX, TRANSLATED
from cumulet.v1 import floatingip_pb2, port_pb2

MUTABLE = ("meta.labels", "spec.description", "spec.target", "spec.forwards")
FORWARDS_MAX: Final = 100  # each is an entry in the kernel


def create(state: State, context: Context, project: str, given: floatingip_pb2.FloatingIP) -> Change:
    violations = Violations()
    project_row = common.get_live_row(state, keys.PROJECTS, project)
    meta = common.new_meta(given.meta, project, context, violations)
    spec = floatingip_pb2.FloatingIPSpec()
    spec.CopyFrom(given.spec)
    network = state.find(keys.EXTERNAL_NETWORKS, spec.external_network)
    if network is None:
        known = state.rows(keys.EXTERNAL_NETWORKS)
        text = common.unknown("external network", spec.external_network, known)
        violations.add("spec.external_network", text)
    _check(state, project, meta.uid, spec, violations)
    violations.raise_any(f"floating IP {given.meta.name!r} was not created")
    assert network is not None  # violations.raise_any has refused otherwise
    network_uid = network.message.meta.uid
    taken = taken_of(state, network_uid, 4)
    spec.address = str(choose_floating_address(context, network, taken, spec.address))
    made = floatingip_pb2.FloatingIP(meta=meta, spec=spec)
    change = common.put_new(state, keys.FLOATING_IPS, (project, meta.name), made)
    charge_floating_ip(change, state, project)  # which also guards that a target has one
    common.rest_on(change, keys.PROJECTS, project_row, project)
    key = keys.ADDRESSES.key(network_uid, spec.address)
    guard = unchanged(keys.EXTERNAL_NETWORKS.key(spec.external_network), network.mod_revision)
    change.compares += [absent(key), guard]
    change.writes[key] = meta.uid.encode()
    text = f"floating IP {meta.name} got {spec.address} of {spec.external_network}"
    change.events.append(common.event(context, "floating-ip", meta, "Created", text))
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: floatingip_pb2.FloatingIP, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.FLOATING_IPS, parts, given, mask, MUTABLE)
    violations = Violations()
    _check(state, parts[0], merged.meta.uid, merged.spec, violations)
    violations.raise_any(f"floating IP {'/'.join(parts)} was not changed")
    change = common.put_changed(keys.FLOATING_IPS, parts, row, merged)
    change.compares.append(range_unchanged_since(keys.FLOATING_IPS.prefix(parts[0]), state.revision))
    if merged.spec.target != row.message.spec.target:
        text = f"{merged.spec.address} goes to {merged.spec.target or 'nobody'}"
        change.events.append(common.event(context, "floating-ip", merged.meta, "Moved", text))
    return change


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    """The address may be given away at once: it is announced anew only when its node has let it go."""
    row = common.get_row(state, keys.FLOATING_IPS, *parts)
    common.check_etag(keys.FLOATING_IPS, parts, row, etag)
    change = common.remove(keys.FLOATING_IPS, parts, row)
    meta, spec = row.message.meta, row.message.spec
    network = state.find(keys.EXTERNAL_NETWORKS, spec.external_network)
    if network is not None:
        change.writes[keys.ADDRESSES.key(network.message.meta.uid, spec.address)] = None
    text = f"floating IP {meta.name} gave {spec.address} back"
    change.events.append(common.event(context, "floating-ip", meta, "Deleted", text))
    return change


def _check(
    state: State, project: str, own_uid: str, spec: floatingip_pb2.FloatingIPSpec, violations: Violations
) -> None:
    common.check_description(spec.description, violations)
    if spec.target and spec.forwards:
        violations.add("spec.forwards", "an address goes to a target or has forwards, not both")
    if len(spec.forwards) > FORWARDS_MAX:
        violations.add("spec.forwards", f"{len(spec.forwards)} forwards, at most {FORWARDS_MAX}")
    balancer = find_balancer(state, project, spec.target)
    if balancer is not None:
        if version_of(balancer) != 4:
            text = f"load balancer {spec.target} has an IPv6 address, and a floating IP is of IPv4"
            violations.add("spec.target", f"{text}: create one of IPv4 for it, with the same members")
        _find_router(state, project, balancer.spec.network, spec.target, "spec.target", violations)
    elif spec.target:
        _check_only_one(state, project, own_uid, spec.target, violations)
        _check_target(state, project, spec.target, "spec.target", violations)
    routers = set()
    for index, forward in enumerate(spec.forwards):
        field = f"spec.forwards[{index}]"
        _check_forward(spec, index, field, violations)
        router = _check_target(state, project, forward.target, f"{field}.target", violations)
        if router:
            routers.add(router)
    if len(routers) > 1:
        names = ", ".join(sorted(routers))
        violations.add("spec.forwards", f"lead to several routers ({names}): one address belongs to one")


def _check_only_one(state: State, project: str, own_uid: str, target: str, violations: Violations) -> None:
    """What a target sends comes from one address."""
    port = find_target(state, project, target)
    for row in state.rows(keys.FLOATING_IPS, project).values():
        other = row.message
        if other.meta.uid != own_uid and port is not None:
            found = find_target(state, project, other.spec.target)
            if found is not None and found.meta.uid == port.meta.uid:
                text = f"{target} has floating IP {other.meta.name} ({other.spec.address}) already"
                violations.add("spec.target", text)


def _check_target(state: State, project: str, word: str, field: str, violations: Violations) -> str | None:
    """The name of its router. A target must be one now; that it stays one is not required."""
    port: port_pb2.Port | None = find_target(state, project, word)
    if port is None:
        known = state.rows(keys.INSTANCES, project)
        violations.add(field, common.unknown("instance", word, known))
        return None
    if not ipv4_of(port):
        violations.add(field, f"{word} has no IPv4 address")
    return _find_router(state, project, port.spec.network, word, field, violations)


def _find_router(
    state: State, project: str, network: str, word: str, field: str, violations: Violations
) -> str | None:
    """Its name."""
    router = state.router_of(project, network)
    if router is not None:
        name: str = router.message.meta.name
        return name
    if find_provider(state, project, network) is not None:
        text = "is a provider network: the outside comes by the operator's router, not by floating IPs"
    else:
        text = f"has no router, so nothing leads there: cumulet router create NAME --network {network}"
    violations.add(field, f"network {network} of {word} {text}")
    return None


def _check_forward(
    spec: floatingip_pb2.FloatingIPSpec, index: int, field: str, violations: Violations
) -> None:
    forward = spec.forwards[index]
    if forward.protocol not in TRANSLATED.values():
        violations.add(f"{field}.protocol", f"{forward.protocol!r} is not {' or '.join(TRANSLATED.values())}")
    if not 1 <= forward.port <= PORT_MAX:
        violations.add(f"{field}.port", f"{forward.port} is not a port, 1 to {PORT_MAX}")
    if forward.target_port > PORT_MAX:
        violations.add(f"{field}.target_port", f"{forward.target_port} is not a port, 1 to {PORT_MAX}")
    if any(
        (other.protocol, other.port) == (forward.protocol, forward.port) for other in spec.forwards[:index]
    ):
        violations.add(f"{field}.port", f"{forward.protocol} port {forward.port} is forwarded already")
