"""What flavors, images and instances may ask of a node: checked, and merged when an instance is created.

**Pure.** Flavor and instance have the same fields for it. What contradicts itself is refused here, where
somebody reads the answer, instead of waiting for a node that cannot be.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from controller.admit import common
from controller.admit.common import Violations
from controller.scheduling import ARCHITECTURE
from cumulet.names import label_error
from cumulet.v1 import flavor_pb2, instance_pb2, placement_pb2
from scheduler.model import PREFERENCE_WEIGHT_MAX, PREFERENCES_MAX
from scheduler.topology import CELLS_MAX, DEVICES_MAX, SHARE_WHOLE, part

CAPABILITIES_MAX: Final = 32  # of an instance; hosts report about twenty
TOLERATIONS_MAX: Final = 32
MODELS_MAX: Final = 16  # alternatives of one device request
NUMA_MEMORY_MIN_MIB: Final = 64  # of a cell's part; as little as a guest boots with
_CAPABILITY: Final = re.compile(r"[a-z0-9]([a-z0-9._:-]{0,61}[a-z0-9])?")
MODEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VIRTUALIZATION: Final = frozenset({"kvm", "tcg"})

Spec: TypeAlias = flavor_pb2.FlavorSpec | instance_pb2.InstanceSpec


def check_requirements(spec: Spec, violations: Violations) -> None:
    """Malformed, absurd and contradictory wishes, each with its field."""
    common.check_labels(spec.node_selector, violations, "spec.node_selector")
    check_capabilities(spec.capabilities, violations)
    _check_tolerations(spec.tolerations, violations)
    _check_preferences(spec, violations)
    _check_cells(spec, violations)
    _check_devices(spec.devices, violations)


def check_capabilities(capabilities: Iterable[str], violations: Violations) -> None:
    found = list(capabilities)
    if len(found) > CAPABILITIES_MAX:
        violations.add("spec.capabilities", f"{len(found)} capabilities, at most {CAPABILITIES_MAX}")
    for index, word in enumerate(found):
        if not _CAPABILITY.fullmatch(word):
            text = f"{word!r} is not a capability, such as kvm, arch:x86_64 or cpu:x86-64-v3"
            violations.add(f"spec.capabilities[{index}]", text)
    machines = {word for word in found if word.startswith(ARCHITECTURE)}
    for several in (machines, _VIRTUALIZATION.intersection(found)):
        if len(several) > 1:
            violations.add("spec.capabilities", f"no node has {' and '.join(sorted(several))}: keep one")


def _check_tolerations(tolerations: Iterable[placement_pb2.Toleration], violations: Violations) -> None:
    found = list(tolerations)
    if len(found) > TOLERATIONS_MAX:
        violations.add("spec.tolerations", f"{len(found)} tolerations, at most {TOLERATIONS_MAX}")
    for index, one in enumerate(found):
        violations.add(f"spec.tolerations[{index}]", label_error(one.key, one.value))


def _check_preferences(spec: Spec, violations: Violations) -> None:
    if len(spec.preferences) > PREFERENCES_MAX:
        count = len(spec.preferences)
        violations.add("spec.preferences", f"{count} preferences, at most {PREFERENCES_MAX}")
    seen: set[tuple[str, str]] = set()
    for index, one in enumerate(spec.preferences):
        field = f"spec.preferences[{index}]"
        violations.add(field, label_error(one.key, one.value))
        if not 0 <= one.weight <= PREFERENCE_WEIGHT_MAX:
            violations.add(f"{field}.weight", f"is {one.weight}, must be 1 to {PREFERENCE_WEIGHT_MAX}")
        if (one.key, one.value) in seen:
            violations.add(field, f"{one.key}={one.value} is there twice")
        seen.add((one.key, one.value))
        only = spec.node_selector.get(one.key, one.value)
        if only != one.value:
            text = f"{one.key}={one.value} is preferred, but spec.node_selector admits {one.key}={only} only"
            violations.add(field, text)


def _check_cells(spec: Spec, violations: Violations) -> None:
    cells, resources = spec.numa_cells, spec.resources
    if not 0 <= cells <= CELLS_MAX:
        violations.add("spec.numa_cells", f"is {cells}, must be 0 (floating) to {CELLS_MAX}")
    elif resources.vcpu and cells > resources.vcpu:
        violations.add("spec.numa_cells", f"{cells} cells cannot share {resources.vcpu} vcpu(s)")
    elif cells and resources.memory_mib and part(resources.memory_mib, cells) < NUMA_MEMORY_MIN_MIB:
        text = f"leaves less than {NUMA_MEMORY_MIN_MIB} MiB of memory in each of {cells} cells"
        violations.add("spec.numa_cells", text)


def _check_devices(devices: Iterable[placement_pb2.DeviceRequest], violations: Violations) -> None:
    total = 0
    for index, want in enumerate(devices):
        field = f"spec.devices[{index}]"
        total += want.count or 1
        if not 0 <= want.count <= DEVICES_MAX:
            violations.add(f"{field}.count", f"is {want.count}, must be 1 to {DEVICES_MAX}")
        if not 0 <= want.share_milli <= SHARE_WHOLE:
            violations.add(f"{field}.share_milli", f"is {want.share_milli}, must be 1 to {SHARE_WHOLE}")
        elif want.count > 1 and 0 < want.share_milli < SHARE_WHOLE:
            violations.add(f"{field}.share_milli", "a share is of one device: ask for count 1, or all of it")
        _check_models(want.models, f"{field}.models", violations)
    if total > DEVICES_MAX:
        violations.add("spec.devices", f"{total} devices, at most {DEVICES_MAX}")


def _check_models(models: Iterable[str], field: str, violations: Violations) -> None:
    found = list(models)
    if len(found) > MODELS_MAX:
        violations.add(field, f"{len(found)} alternatives, at most {MODELS_MAX}")
    for model, times in Counter(found).items():
        if not MODEL.fullmatch(model):
            violations.add(field, f"{model!r} is not a device's model, such as gpu-a100")
        elif times > 1:
            violations.add(field, f"{model} is there twice")


def copy_requirements(given: Spec, to: Spec) -> None:
    """What is asked for, with defaults written out, so that whoever reads it needs to know none."""
    to.node_selector.update(given.node_selector)
    to.capabilities.extend(dict.fromkeys(given.capabilities))
    for toleration in given.tolerations:
        if toleration not in to.tolerations:
            to.tolerations.append(toleration)
    for preference in given.preferences:
        kept = to.preferences.add(key=preference.key, value=preference.value)
        kept.weight = preference.weight or 1
    to.numa_cells = given.numa_cells
    for want in given.devices:
        kept_want = to.devices.add(models=sorted(want.models), count=want.count or 1)
        kept_want.share_milli = want.share_milli or SHARE_WHOLE


def merge_flavor(
    flavor: flavor_pb2.FlavorSpec, spec: instance_pb2.InstanceSpec, violations: Violations
) -> None:
    """Add what the flavor asks for to the instance's own wishes (normal already), which cannot weaken it.

    Where both speak of one thing and differ, that is a violation; of preferences the instance's weight holds.
    """
    _merge_selector(flavor.node_selector, spec, violations)
    spec.capabilities.extend(word for word in flavor.capabilities if word not in spec.capabilities)
    spec.tolerations.extend(one for one in flavor.tolerations if one not in spec.tolerations)
    own = {(one.key, one.value) for one in spec.preferences}
    spec.preferences.extend(one for one in flavor.preferences if (one.key, one.value) not in own)
    if flavor.numa_cells and spec.numa_cells not in (0, flavor.numa_cells):
        text = f"is {spec.numa_cells}, but flavor {spec.flavor} has {flavor.numa_cells}: leave it out"
        violations.add("spec.numa_cells", text)
    spec.numa_cells = spec.numa_cells or flavor.numa_cells
    if flavor.devices and spec.devices and list(flavor.devices) != list(spec.devices):
        text = f"flavor {spec.flavor} brings its own devices: leave them out, or choose another flavor"
        violations.add("spec.devices", text)
    elif not spec.devices:
        spec.devices.extend(flavor.devices)


def _merge_selector(
    selector: Mapping[str, str], spec: instance_pb2.InstanceSpec, violations: Violations
) -> None:
    for key, value in selector.items():
        own = spec.node_selector.get(key, value)
        if own != value:
            text = f"{key}={own} contradicts flavor {spec.flavor}, which needs {key}={value}"
            violations.add("spec.node_selector", text)
        spec.node_selector[key] = own


def check_together(spec: instance_pb2.InstanceSpec, violations: Violations) -> None:
    """Whether instance, flavor and image can have one node at all."""
    machine = spec.image_files.architecture
    others = [word for word in spec.capabilities if word.startswith(ARCHITECTURE)]
    if machine and others and others[0] != f"{ARCHITECTURE}{machine}":
        text = f"{others[0]} contradicts image {spec.image}, which is built for {machine}"
        violations.add("spec.capabilities", text)
    wanted = _VIRTUALIZATION.intersection(spec.image_files.capabilities)
    own = _VIRTUALIZATION.intersection(spec.capabilities)
    if wanted and own and own != wanted:
        text = f"{' and '.join(own)} contradicts image {spec.image}, which needs {' and '.join(wanted)}"
        violations.add("spec.capabilities", text)
