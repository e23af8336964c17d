"""Admission of instances: everything a VM needs, in one change.

**Pure.** The instance, its ports with addresses and MACs, its operation and its event are written together,
guarded by the quota's range and by everything the instance refers to.
"""

from __future__ import annotations

import random
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common, subnet
from controller.admit.common import Context, Referred, Violations, choices, unknown
from controller.admit.gang import join_gang
from controller.admit.placementgroup import join_groups
from controller.admit.project import charge_instance
from controller.admit.requirements import check_requirements, check_together, copy_requirements, merge_flavor
from controller.admit.securitygroup import DEFAULT_GROUP, check_groups, put_default
from controller.assemble import instance_phase
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.protocol import absent, unchanged
from controller.tables import Stored, devices_milli
from cumulet import lifecycle
from cumulet.convert import resources_from, timestamp
from cumulet.errors import FailedPreconditionError, UnavailableError
from cumulet.names import new_uid
from cumulet.v1 import instance_pb2, meta_pb2, operation_pb2, port_pb2

USER_DATA_MAX: Final = 16 * 1024  # as EC2 and OpenStack limit it; fits the seed and the plan's messages
NETWORKS_MAX: Final = 8  # ports of one instance; a PCI slot each
KEY_PAIRS_MAX: Final = 32
STOP_TIMEOUT_DEFAULT_S: Final = 60
STOP_TIMEOUT_MAX_S: Final = 3600
LIFETIME_MAX_S: Final = 100 * 366 * 86_400  # a century
OPERATION_DEADLINE_S: Final = 3600.0  # an operation that has not ended by then is reported as failed
MAC_TRIES: Final = 64  # random draws of 40 bits: a miss means that the randomness is broken
MUTABLE = ("meta.labels", "spec.deletion_protection", "spec.stop_timeout_s")


def create(state: State, context: Context, project: str, given: instance_pb2.Instance) -> Change:
    """The result is the operation's name."""
    violations = Violations()
    project_row = common.get_live_row(state, keys.PROJECTS, project)
    meta = common.new_meta(given.meta, project, context, violations)
    _check_own_fields(given.spec, violations)
    spec, referred = _resolve(state, project, given.spec, violations)
    violations.raise_any(f"instance {given.meta.name!r} was not created")
    spec.security_level = project_row.message.spec.security_level
    made = instance_pb2.Instance(meta=meta, spec=spec)
    change = Change()
    for table, row, *parts in referred:
        common.rest_on(change, table, row, *parts)
    if DEFAULT_GROUP in spec.security_groups:
        put_default(state, context, project, change)
    for index in range(len(spec.networks)):
        _add_port(change, state, context, made, index)
    instance = common.put_new(state, keys.INSTANCES, (project, meta.name), made)
    change.compares += instance.compares
    change.writes |= instance.writes
    charge_instance(change, state, project, resources_from(spec.resources), devices_milli(spec))
    _add_operation(change, context, made, "instance.create", goal_boots=spec.boots)
    change.events.append(
        common.event(context, "instance", meta, "Created", f"instance {meta.name} was asked for")
    )
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: instance_pb2.Instance, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.INSTANCES, parts, given, mask, MUTABLE)
    violations = Violations()
    _check_stop_timeout(merged.spec, violations)
    violations.raise_any(f"instance {'/'.join(parts)} was not changed")
    return common.put_changed(keys.INSTANCES, parts, row, merged)


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    """Mark it: its node cleans up, then the leader removes it. Deleting twice gives the first operation."""
    row = common.get_row(state, keys.INSTANCES, *parts)
    common.check_etag(keys.INSTANCES, parts, row, etag)
    if row.message.spec.deletion_protection:
        raise FailedPreconditionError(
            f"instance {'/'.join(parts)} is protected against deletion",
            hints=[f"cumulet instance update {parts[1]} --no-deletion-protection"],
        )
    if row.message.meta.HasField("deleted_at"):
        for (_, name), operation in state.operations_of(row.message.meta.uid):
            if operation.message.verb == "instance.delete":
                return Change(result=name)
    changed = _copy(row)
    changed.meta.deleted_at.CopyFrom(timestamp(context.now))
    change = common.put_changed(keys.INSTANCES, parts, row, changed)
    _add_operation(change, context, changed, "instance.delete")
    change.events.append(
        common.event(context, "instance", changed.meta, "DeleteRequested", "deletion was asked for")
    )
    return change


def start(state: State, context: Context, parts: tuple[str, ...]) -> Change:
    """One more boot, unless it is on its way up or running already."""
    row = common.get_live_row(state, keys.INSTANCES, *parts)
    asked = row.message.spec.power == instance_pb2.POWER_STATE_ON
    up = asked and instance_phase(state, row) in (lifecycle.PENDING, lifecycle.STARTING, lifecycle.RUNNING)
    return _power(state, context, parts, "instance.start", instance_pb2.POWER_STATE_ON, boots=0 if up else 1)


def reboot(state: State, context: Context, parts: tuple[str, ...], force: bool) -> Change:
    """Raises FailedPreconditionError when it is off."""
    row = common.get_live_row(state, keys.INSTANCES, *parts)
    if row.message.spec.power != instance_pb2.POWER_STATE_ON:
        raise FailedPreconditionError(
            f"instance {'/'.join(parts)} is stopped, so it cannot be rebooted",
            hints=[f"cumulet instance start {parts[1]} --project {parts[0]}"],
        )
    return _power(state, context, parts, "instance.reboot", instance_pb2.POWER_STATE_ON, boots=1, force=force)


def stop(state: State, context: Context, parts: tuple[str, ...], force: bool) -> Change:
    return _power(state, context, parts, "instance.stop", instance_pb2.POWER_STATE_OFF, force=force)


def _power(
    state: State,
    context: Context,
    parts: tuple[str, ...],
    verb: str,
    power: instance_pb2.PowerState.ValueType,
    *,
    boots: int = 0,
    force: bool = False,
) -> Change:
    row = common.get_live_row(state, keys.INSTANCES, *parts)
    changed = _copy(row)
    changed.spec.power = power
    changed.spec.boots += boots
    changed.spec.power_forced = force
    changed.meta.generation += changed.spec != row.message.spec
    change = common.put_changed(keys.INSTANCES, parts, row, changed)
    _add_operation(change, context, changed, verb, goal_boots=changed.spec.boots)
    word = verb.removeprefix("instance.").capitalize() + "Requested"
    text = f"{verb.removeprefix('instance.')} was asked for{', by force' if force else ''}"
    change.events.append(common.event(context, "instance", changed.meta, word, text))
    return change


def _copy(row: Stored) -> instance_pb2.Instance:
    copy = instance_pb2.Instance()
    copy.CopyFrom(row.message)
    return copy


def _check_own_fields(spec: instance_pb2.InstanceSpec, violations: Violations) -> None:
    if len(spec.user_data) > USER_DATA_MAX:
        violations.add(
            "spec.user_data",
            f"has {len(spec.user_data)} bytes, at most {USER_DATA_MAX}: fetch the rest from inside the guest",
        )
    if len(spec.networks) > NETWORKS_MAX:
        violations.add("spec.networks", f"{len(spec.networks)} networks, at most {NETWORKS_MAX}")
    if len(spec.key_pairs) > KEY_PAIRS_MAX:
        violations.add("spec.key_pairs", f"{len(spec.key_pairs)} key pairs, at most {KEY_PAIRS_MAX}")
    if not 0 <= spec.expected_lifetime_s <= LIFETIME_MAX_S:
        text = f"is {spec.expected_lifetime_s}, must be 0 (unknown) to {LIFETIME_MAX_S}"
        violations.add("spec.expected_lifetime_s", text)
    if spec.power not in instance_pb2.PowerState.values():
        violations.add("spec.power", f"{spec.power} is not a power state: ON or OFF")
    _check_stop_timeout(spec, violations)


def _check_stop_timeout(spec: instance_pb2.InstanceSpec, violations: Violations) -> None:
    if not 0 <= spec.stop_timeout_s <= STOP_TIMEOUT_MAX_S:
        violations.add("spec.stop_timeout_s", f"must be between 0 (default) and {STOP_TIMEOUT_MAX_S}")


def _resolve(
    state: State, project: str, given: instance_pb2.InstanceSpec, violations: Violations
) -> tuple[instance_pb2.InstanceSpec, list[Referred]]:
    """Copy what flavor, image and key pairs say into the spec, and note what the instance refers to."""
    spec = instance_pb2.InstanceSpec(
        flavor=given.flavor,
        image=given.image,
        key_pairs=given.key_pairs,
        user_data=given.user_data,
        power=given.power or instance_pb2.POWER_STATE_ON,
        boots=0 if given.power == instance_pb2.POWER_STATE_OFF else 1,
        stop_timeout_s=given.stop_timeout_s or STOP_TIMEOUT_DEFAULT_S,
        deletion_protection=given.deletion_protection,
        expected_lifetime_s=given.expected_lifetime_s,
    )
    copy_requirements(given, spec)
    referred: list[Referred] = []
    flavor = state.find(keys.FLAVORS, given.flavor)
    image = state.find(keys.IMAGES, given.image)
    if flavor is None:
        violations.add("spec.flavor", unknown("flavor", given.flavor, state.rows(keys.FLAVORS)))
    else:
        spec.resources.CopyFrom(flavor.message.spec.resources)
        merge_flavor(flavor.message.spec, spec, violations)
    if image is None:
        violations.add("spec.image", unknown("image", given.image, state.rows(keys.IMAGES)))
    else:
        spec.image_files.CopyFrom(image.message.spec)
        spec.image_files.ClearField("description")
        referred.append((keys.IMAGES, image, given.image))
    if flavor is not None and image is not None:
        _check_room(spec, violations)
    check_requirements(spec, violations)
    check_together(spec, violations)
    referred += join_groups(state, project, given, spec, violations)
    join_gang(state, project, given, spec, violations)
    _resolve_keys(state, project, given, spec, violations)
    _resolve_networks(state, project, given, spec, referred, violations)
    _resolve_groups(state, project, given, spec, referred, violations)
    return spec, referred


def _resolve_keys(
    state: State,
    project: str,
    given: instance_pb2.InstanceSpec,
    spec: instance_pb2.InstanceSpec,
    violations: Violations,
) -> None:
    for index, name in enumerate(given.key_pairs):
        row = state.find(keys.KEY_PAIRS, project, name)
        if row is None:
            known = state.rows(keys.KEY_PAIRS, project)
            violations.add(f"spec.key_pairs[{index}]", unknown("key pair", name, known))
        else:
            spec.authorized_keys.append(row.message.spec.public_key)


def _resolve_networks(
    state: State,
    project: str,
    given: instance_pb2.InstanceSpec,
    spec: instance_pb2.InstanceSpec,
    referred: list[Referred],
    violations: Violations,
) -> None:
    known = state.rows(keys.NETWORKS, project)
    if not given.networks:
        violations.add("spec.networks", "name at least one network" + choices(known))
    for index, attachment in enumerate(given.networks):
        row = state.find(keys.NETWORKS, project, attachment.network)
        if row is None:
            violations.add(f"spec.networks[{index}].network", unknown("network", attachment.network, known))
            continue
        referred.append((keys.NETWORKS, row, project, attachment.network))
        uplink = row.message.spec.provider.uplink  # of a provider network, which cannot become another
        spec.networks.add(network=attachment.network, address=attachment.address, uplink=uplink)


def _resolve_groups(
    state: State,
    project: str,
    given: instance_pb2.InstanceSpec,
    spec: instance_pb2.InstanceSpec,
    referred: list[Referred],
    violations: Violations,
) -> None:
    """Without any it is the default group, which a project of an older cloud gets with its next instance."""
    names = list(given.security_groups) or [DEFAULT_GROUP]
    if given.security_groups or state.find(keys.SECURITY_GROUPS, project, DEFAULT_GROUP) is not None:
        referred += check_groups(state, project, names, "spec.security_groups", violations)
    spec.security_groups[:] = names


def _check_room(spec: instance_pb2.InstanceSpec, violations: Violations) -> None:
    """The image's demands and its disk must fit the flavor."""
    image, flavor = spec.image_files, spec.resources
    if flavor.memory_mib < image.min_memory_mib:
        violations.add(
            "spec.flavor",
            f"has {flavor.memory_mib} MiB of memory, image {spec.image} needs {image.min_memory_mib}",
        )
    disk_gib = max(image.min_disk_gib, -(-image.disk.virtual_size_bytes // 2**30))
    if flavor.disk_gib < disk_gib:
        violations.add(
            "spec.flavor", f"has a disk of {flavor.disk_gib} GiB, image {spec.image} needs {disk_gib}"
        )


def _add_port(
    change: Change, state: State, context: Context, made: instance_pb2.Instance, index: int
) -> None:
    """One port of the new instance. Two of one instance in one network get different addresses."""
    attachment = made.spec.networks[index]
    project = made.meta.project
    network = common.get_live_row(state, keys.NETWORKS, project, attachment.network)
    network_uid = network.message.meta.uid
    prefix = keys.ADDRESSES.prefix(network_uid)
    besides = [key.removeprefix(prefix).decode() for key in change.writes if key.startswith(prefix)]
    chosen = subnet.choose_address(state, context, network, attachment.address, besides)
    mac = _free_mac(change, state, context, network_uid)
    uid = new_uid(context.rng)
    name = f"{made.meta.name[:50].rstrip('-')}-{uid[:8]}"
    port = port_pb2.Port(
        meta=meta_pb2.Meta(
            uid=uid, name=name, project=project, generation=1, created_at=timestamp(context.now)
        ),
        spec=port_pb2.PortSpec(
            network=attachment.network,
            instance=made.meta.name,
            mac=mac,
            security_groups=made.spec.security_groups,
        ),
    )
    attachment.port_uid = uid
    if chosen is not None:
        subnet_name, attachment.address = chosen
        port.spec.addresses.add(subnet=subnet_name, address=attachment.address)
        _claim(change, keys.ADDRESSES.key(network_uid, attachment.address), uid.encode())
        row = common.get_row(state, keys.SUBNETS, project, subnet_name)  # its ranges are those that were read
        change.compares.append(unchanged(keys.SUBNETS.key(project, subnet_name), row.mod_revision))
    _claim(change, keys.MACS.key(network_uid, mac), uid.encode())
    _claim(change, keys.PORTS.key(project, name), common.encode(port))


def _claim(change: Change, key: bytes, value: bytes) -> None:
    """Write a key that nobody has."""
    change.compares.append(absent(key))
    change.writes[key] = value


def _free_mac(change: Change, state: State, context: Context, network_uid: str) -> str:
    """One that no port of the network has, nor one made in the same transaction."""
    for _ in range(MAC_TRIES):
        mac = _new_mac(context.rng)
        taken = state.find(keys.MACS, network_uid, mac) is not None
        if not taken and keys.MACS.key(network_uid, mac) not in change.writes:
            return mac
    raise UnavailableError("no free MAC address was found: ask again")


def _new_mac(rng: random.Random) -> str:
    """A random unicast address of the locally administered range (IEEE 802, bit 0x02 of the first byte)."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *rng.randbytes(5)))


def _add_operation(
    change: Change, context: Context, target: instance_pb2.Instance, verb: str, *, goal_boots: int = 0
) -> None:
    uid = new_uid(context.rng)
    meta = target.meta
    operation = operation_pb2.Operation(
        meta=meta_pb2.Meta(
            uid=uid,
            name=f"op-{uid[:13]}",
            project=meta.project,
            generation=1,
            created_at=timestamp(context.now),
        ),
        verb=verb,
        target=operation_pb2.ObjectRef(kind="instance", project=meta.project, name=meta.name, uid=meta.uid),
        deadline_at=timestamp(context.now + OPERATION_DEADLINE_S),
        goal_boots=goal_boots,
    )
    key = keys.OPERATIONS.key(meta.project, operation.meta.name)
    change.compares.append(absent(key))
    change.writes[key] = common.encode(operation)
    change.result = operation.meta.name
