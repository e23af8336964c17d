"""What may be asked of a node: each bad wish by its field, and what passes can be scheduled.

**Pure.**
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.admit.common import Violations
from controller.admit.requirements import (
    CAPABILITIES_MAX,
    MODELS_MAX,
    TOLERATIONS_MAX,
    check_capabilities,
    check_requirements,
    check_together,
    copy_requirements,
    merge_flavor,
)
from controller.fleet import build_request
from cumulet.v1 import flavor_pb2, image_pb2, instance_pb2, meta_pb2, placement_pb2
from scheduler.model import PREFERENCE_WEIGHT_MAX, PREFERENCES_MAX
from scheduler.topology import CELLS_MAX, DEVICES_MAX, SHARE_WHOLE
from tests.unit.controller.cloud import fields_of

Toleration, Preference, Device = (
    placement_pb2.Toleration,
    placement_pb2.Preference,
    placement_pb2.DeviceRequest,
)
FLAVOR_1: dict[str, Any] = {"flavor": "f", "image": "i"}

CAPABILITIES = st.sampled_from(["kvm", "tcg", "arch:x86_64", "arch:aarch64", "cpu:x86-64-v3", "NOT ONE"])


def specs(*, wild: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Fields of a spec; wild ones may be malformed and out of bounds, others contradictory at most."""
    beyond = int(wild)
    key = st.sampled_from(["rack", "zone", *(["no key!", ""] if wild else [])])
    value = st.sampled_from(["a", "b", *(["\x00"] if wild else [])])
    toleration = st.one_of(st.builds(Toleration, key=key), st.builds(Toleration, key=key, value=value))
    weight = st.integers(-beyond, PREFERENCE_WEIGHT_MAX + beyond)
    device = st.builds(
        Device,
        models=st.lists(st.sampled_from(["gpu-a100", "gpu-l4", *(["-", ""] if wild else [])]), max_size=2),
        count=st.integers(-beyond, DEVICES_MAX + 1 if wild else 2),
        share_milli=st.integers(-beyond, SHARE_WHOLE + beyond),
    )
    return st.fixed_dictionaries(
        {
            "resources": st.builds(
                meta_pb2.Resources, vcpu=st.integers(0, 12), memory_mib=st.integers(0, 1_024)
            ),
            "node_selector": st.dictionaries(key, value, max_size=2),
            "capabilities": st.lists(
                CAPABILITIES if wild else st.sampled_from(["kvm", "arch:x86_64"]), max_size=3
            ),
            "tolerations": st.lists(toleration, max_size=3),
            "preferences": st.lists(
                st.builds(Preference, key=key, value=value, weight=weight),
                max_size=PREFERENCES_MAX + 1 if wild else 2,
            ),
            "numa_cells": st.integers(-beyond, CELLS_MAX + beyond),
            "devices": st.lists(device, max_size=2),
        }
    )


SANE, WILD = specs(wild=False), specs(wild=True)
SPECS = st.one_of(SANE, WILD)


def found(spec: instance_pb2.InstanceSpec | flavor_pb2.FlavorSpec) -> Violations:
    violations = Violations()
    check_requirements(spec, violations)
    return violations


def copied(spec: instance_pb2.InstanceSpec) -> instance_pb2.InstanceSpec:
    made = instance_pb2.InstanceSpec(resources=spec.resources)
    copy_requirements(spec, made)
    return made


@given(SPECS)
def test_what_passes_can_be_scheduled(fields: dict[str, Any]) -> None:
    spec = instance_pb2.InstanceSpec(**fields)
    if not found(spec).found:
        meta = meta_pb2.Meta(uid="u", name="web", project="p")
        request = build_request(instance_pb2.Instance(meta=meta, spec=copied(spec)))
        assert request.numa_cells == spec.numa_cells
        assert sum(want.count for want in request.devices) <= DEVICES_MAX


@given(SPECS)
def test_flavors_and_instances_are_checked_alike(fields: dict[str, Any]) -> None:
    one, other = found(instance_pb2.InstanceSpec(**fields)), found(flavor_pb2.FlavorSpec(**fields))
    assert one.found == other.found


@given(SPECS)
def test_a_copy_is_complete_and_copying_it_changes_nothing(fields: dict[str, Any]) -> None:
    spec = copied(instance_pb2.InstanceSpec(**fields))
    assert copied(spec) == spec
    assert all(one.weight for one in spec.preferences)
    assert all(want.count and want.share_milli for want in spec.devices)
    assert len(set(spec.capabilities)) == len(spec.capabilities)


@given(SPECS, SPECS)
def test_a_flavor_is_not_weakened(own: dict[str, Any], flavors: dict[str, Any]) -> None:
    spec, flavor = copied(instance_pb2.InstanceSpec(**own)), flavor_pb2.FlavorSpec()
    copy_requirements(flavor_pb2.FlavorSpec(**flavors), flavor)
    before = copied(spec)
    violations = Violations()
    merge_flavor(flavor, spec, violations)
    for part in (flavor, before):
        assert set(part.capabilities) <= set(spec.capabilities)
    if not violations.found:
        for part in (flavor, before):
            assert part.node_selector.items() <= spec.node_selector.items()
            assert part.numa_cells in (0, spec.numa_cells)
            assert not part.devices or list(part.devices) == list(spec.devices)
        again = Violations()
        merged = copied(spec)
        merge_flavor(flavor, merged, again)
        assert (merged, again.found) == (copied(spec), [])


CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, set()),
    "a label's key": ({"node_selector": {"no key!": "a"}}, {"spec.node_selector"}),
    "a capability": ({"capabilities": ["kvm", "NOT ONE"]}, {"spec.capabilities[1]"}),
    "two architectures": ({"capabilities": ["arch:x86_64", "arch:aarch64"]}, {"spec.capabilities"}),
    "both kinds of virtualization": ({"capabilities": ["kvm", "tcg"]}, {"spec.capabilities"}),
    "too many capabilities": (
        {"capabilities": [f"cpu:{n}" for n in range(CAPABILITIES_MAX + 1)]},
        {"spec.capabilities"},
    ),
    "a toleration": ({"tolerations": [Toleration(key="ok"), Toleration(key="")]}, {"spec.tolerations[1]"}),
    "too many tolerations": (
        {"tolerations": [Toleration(key=f"k{n}") for n in range(TOLERATIONS_MAX + 1)]},
        {"spec.tolerations"},
    ),
    "a preference's weight": (
        {"preferences": [Preference(key="k", value="v", weight=PREFERENCE_WEIGHT_MAX + 1)]},
        {"spec.preferences[0].weight"},
    ),
    "a preference twice": (
        {"preferences": [Preference(key="k", value="v"), Preference(key="k", value="v", weight=5)]},
        {"spec.preferences[1]"},
    ),
    "a preference that the selector excludes": (
        {"node_selector": {"rack": "a"}, "preferences": [Preference(key="rack", value="b")]},
        {"spec.preferences[0]"},
    ),
    "a preference that the selector demands": (
        {"node_selector": {"rack": "a"}, "preferences": [Preference(key="rack", value="a")]},
        set(),
    ),
    "too many preferences": (
        {"preferences": [Preference(key=f"k{n}", value="v") for n in range(PREFERENCES_MAX + 1)]},
        {"spec.preferences"},
    ),
    "negative cells": ({"numa_cells": -1}, {"spec.numa_cells"}),
    "too many cells": ({"numa_cells": CELLS_MAX + 1}, {"spec.numa_cells"}),
    "more cells than vcpus": (
        {"numa_cells": 4, "resources": meta_pb2.Resources(vcpu=2, memory_mib=4_096)},
        {"spec.numa_cells"},
    ),
    "cells with hardly any memory": (
        {"numa_cells": 4, "resources": meta_pb2.Resources(vcpu=4, memory_mib=128)},
        {"spec.numa_cells"},
    ),
    "a device's count": ({"devices": [Device(count=-1)]}, {"spec.devices[0].count"}),
    "a device's share": ({"devices": [Device(share_milli=SHARE_WHOLE + 1)]}, {"spec.devices[0].share_milli"}),
    "shares of several devices": (
        {"devices": [Device(count=2, share_milli=500)]},
        {"spec.devices[0].share_milli"},
    ),
    "several whole devices": ({"devices": [Device(count=2, share_milli=SHARE_WHOLE)]}, set()),
    "a device's model": ({"devices": [Device(models=["-"])]}, {"spec.devices[0].models"}),
    "a model twice": ({"devices": [Device(models=["gpu", "gpu"])]}, {"spec.devices[0].models"}),
    "too many models": (
        {"devices": [Device(models=[f"gpu{n}" for n in range(MODELS_MAX + 1)])]},
        {"spec.devices[0].models"},
    ),
    "too many devices in all": (
        {"devices": [Device(count=DEVICES_MAX), Device(count=1)]},
        {"spec.devices"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_bad_wish_is_named_by_its_field(name: str) -> None:
    fields, expected = CASES[name]
    assert fields_of(found(instance_pb2.InstanceSpec(**fields)).found) == expected


def test_a_violation_says_what_is_wrong_and_what_is_right() -> None:
    spec = instance_pb2.InstanceSpec(numa_cells=CELLS_MAX + 1, capabilities=["kvm", "tcg"])
    texts = {one.field: one.description for one in found(spec).found}
    assert texts["spec.numa_cells"] == f"is {CELLS_MAX + 1}, must be 0 (floating) to {CELLS_MAX}"
    assert texts["spec.capabilities"] == "no node has kvm and tcg: keep one"


@pytest.mark.parametrize(
    ("flavor", "own", "expected"),
    [
        ({"node_selector": {"rack": "a"}}, {"node_selector": {"rack": "b"}}, {"spec.node_selector"}),
        ({"numa_cells": 2}, {"numa_cells": 4}, {"spec.numa_cells"}),
        ({"numa_cells": 2}, {"numa_cells": 2}, set()),
        (
            {"devices": [Device(models=["a"], count=1)]},
            {"devices": [Device(models=["b"], count=1)]},
            {"spec.devices"},
        ),
        ({"devices": [Device(models=["a"], count=1)]}, {}, set()),
    ],
)
def test_who_contradicts_the_flavor_is_told_where(
    flavor: dict[str, Any], own: dict[str, Any], expected: set[str]
) -> None:
    violations = Violations()
    merge_flavor(flavor_pb2.FlavorSpec(**flavor), instance_pb2.InstanceSpec(**FLAVOR_1, **own), violations)
    assert fields_of(violations.found) == expected
    assert all("flavor f" in one.description for one in violations.found)


def test_of_one_preference_the_instances_weight_holds() -> None:
    spec = instance_pb2.InstanceSpec(preferences=[Preference(key="rack", value="a", weight=7)])
    flavor = flavor_pb2.FlavorSpec(
        preferences=[Preference(key="rack", value="a", weight=1), Preference(key="rack", value="b", weight=2)]
    )
    merge_flavor(flavor, spec, Violations())
    assert [(one.value, one.weight) for one in spec.preferences] == [("a", 7), ("b", 2)]


@pytest.mark.parametrize(
    ("image", "capabilities", "contradicts"),
    [
        ({"architecture": "aarch64"}, ["arch:x86_64"], True),
        ({"architecture": "aarch64"}, ["arch:aarch64"], False),
        ({"architecture": "aarch64"}, ["kvm"], False),
        ({"capabilities": ["kvm"]}, ["tcg"], True),
        ({"capabilities": ["kvm"]}, ["kvm"], False),
        ({}, ["tcg", "arch:x86_64"], False),
    ],
)
def test_instance_and_image_must_be_able_to_have_one_node(
    image: dict[str, Any], capabilities: list[str], contradicts: bool
) -> None:
    spec = instance_pb2.InstanceSpec(
        image="i", image_files=image_pb2.ImageSpec(**image), capabilities=capabilities
    )
    violations = Violations()
    check_together(spec, violations)
    assert fields_of(violations.found) == ({"spec.capabilities"} if contradicts else set())


@given(st.lists(CAPABILITIES, max_size=4))
def test_a_host_can_have_what_passes(words: list[str]) -> None:
    violations = Violations()
    check_capabilities(words, violations)
    assert bool(violations.found) == (
        "NOT ONE" in words or {"kvm", "tcg"} <= set(words) or {"arch:x86_64", "arch:aarch64"} <= set(words)
    )
