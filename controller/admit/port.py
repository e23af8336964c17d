"""Admission of what users change at ports: security groups, further addresses, limits of rate.

**Pure.** Ports are made and removed with their instances (`instance.py`).
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.securitygroup import check_groups
from controller.commit import Change
from controller.state import State
from controller.store import keys
from cumulet.addresses import PART_RANGE, PART_RANGE6, parse_range
from cumulet.v1 import port_pb2

MUTABLE = (
    "meta.labels",
    "spec.security_groups",
    "spec.allowed_pairs",
    "spec.ingress_bps",
    "spec.egress_bps",
)
PAIRS_MAX: Final = 10  # OpenStack's default; each is an entry in the kernel
RATE_MIN_BPS: Final = 64_000  # below that a guest cannot even boot from the network
RATE_MAX_BPS: Final = 10**12
_MAC: Final = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")  # unicast


def update(
    state: State, context: Context, parts: tuple[str, ...], given: port_pb2.Port, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.PORTS, parts, given, mask, MUTABLE)
    violations = Violations()
    names = list(merged.spec.security_groups)
    groups = check_groups(state, parts[0], names, "spec.security_groups", violations)
    _check_pairs(merged.spec, violations)
    for field in ("ingress_bps", "egress_bps"):
        rate = getattr(merged.spec, field)
        if rate and not RATE_MIN_BPS <= rate <= RATE_MAX_BPS:
            violations.add(
                f"spec.{field}", f"{rate} is not between {RATE_MIN_BPS} and {RATE_MAX_BPS} (0: none)"
            )
    violations.raise_any(f"port {'/'.join(parts)} was not changed")
    change = common.put_changed(keys.PORTS, parts, row, merged)
    for table, group, *where in groups:
        common.rest_on(change, table, group, *where)
    return change


def _check_pairs(spec: port_pb2.PortSpec, violations: Violations) -> None:
    if len(spec.allowed_pairs) > PAIRS_MAX:
        violations.add("spec.allowed_pairs", f"{len(spec.allowed_pairs)} pairs, at most {PAIRS_MAX}")
    for index, pair in enumerate(spec.allowed_pairs):
        field = f"spec.allowed_pairs[{index}]"
        pair.mac = pair.mac.lower()
        try:
            cidr = parse_range(pair.cidr)
            pair.cidr = str(cidr)
            parts = PART_RANGE if isinstance(cidr, IPv4Network) else PART_RANGE6
            if cidr.network_address in parts and cidr.broadcast_address in parts:
                violations.add(f"{field}.cidr", f"{cidr} lies in {parts}, which is the nodes' own")
        except ValueError as error:
            violations.add(f"{field}.cidr", f"{pair.cidr!r} is neither an address nor a range ({error})")
        if pair.mac and not _MAC.fullmatch(pair.mac):
            violations.add(f"{field}.mac", f"{pair.mac!r} is not a unicast MAC address")
