"""Requests remembered by shape are what is read out of each spec.

**Pure.**
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import controller.reconcile.shapes as shapes_module
from controller.fleet import build_request
from controller.reconcile.shapes import Shapes
from cumulet.v1 import image_pb2, instance_pb2, meta_pb2, placement_pb2
from scheduler.model import RequestError

WORDS = st.sampled_from(["a", "b"])
FEW = st.lists(WORDS, max_size=2, unique=True)
AMOUNTS = st.builds(
    meta_pb2.Resources,
    vcpu=st.integers(0, 2),
    memory_mib=st.integers(0, 2),
    disk_gib=st.integers(0, 1),
    extended=st.dictionaries(WORDS, st.integers(0, 2), max_size=2),
)
TOLERATIONS = st.one_of(
    st.builds(placement_pb2.Toleration, key=WORDS),
    st.builds(placement_pb2.Toleration, key=WORDS, value=WORDS),
)
PREFERENCES = st.builds(placement_pb2.Preference, key=WORDS, value=WORDS, weight=st.integers(1, 2))
DEVICES = st.builds(
    placement_pb2.DeviceRequest, models=FEW, count=st.just(1), share_milli=st.sampled_from([500, 1000])
)
ATTACHMENTS = st.builds(instance_pb2.NetworkAttachment, network=WORDS, uplink=st.sampled_from(["", "a", "b"]))
IMAGES = st.builds(image_pb2.ImageSpec, architecture=st.sampled_from(["", "x86_64"]), capabilities=FEW)
SPECS = st.builds(
    instance_pb2.InstanceSpec,
    resources=AMOUNTS,
    security_level=st.integers(0, 1),
    numa_cells=st.integers(0, 1),
    expected_lifetime_s=st.integers(0, 1),
    image_files=IMAGES,
    capabilities=FEW,
    placement_groups=FEW,
    node_selector=st.dictionaries(WORDS, WORDS, max_size=2),
    tolerations=st.lists(TOLERATIONS, max_size=2),
    preferences=st.lists(PREFERENCES, max_size=2),
    devices=st.lists(DEVICES, max_size=1),
    networks=st.lists(ATTACHMENTS, max_size=2),
    gang=st.one_of(st.none(), st.builds(placement_pb2.Gang, name=WORDS, size=st.integers(1, 2))),
)


def instance(number: int, project: str, spec: instance_pb2.InstanceSpec) -> instance_pb2.Instance:
    meta = meta_pb2.Meta(uid=f"uid-{number}", name=f"i{number}", project=project)
    return instance_pb2.Instance(meta=meta, spec=spec)


@given(st.lists(st.tuples(WORDS, SPECS), min_size=1, max_size=12))
def test_a_remembered_request_is_the_one_that_is_read(
    made: list[tuple[str, instance_pb2.InstanceSpec]],
) -> None:
    shapes = Shapes()
    for number, (project, spec) in enumerate([*made, *made]):
        one = instance(number, project, spec)
        assert shapes.request(one) == build_request(one)
    assert len(shapes) <= len(made)


def test_only_what_placement_reads_makes_a_shape() -> None:
    shapes = Shapes()
    for number in range(5):
        spec = instance_pb2.InstanceSpec(flavor=f"f{number}", boots=number, user_data=bytes([number]))
        shapes.request(instance(number, "p", spec))
    assert len(shapes) == 1


def test_what_cannot_be_is_not_remembered() -> None:
    shapes = Shapes()
    with pytest.raises(RequestError, match="numa_cells"):
        shapes.request(instance(1, "p", instance_pb2.InstanceSpec(numa_cells=10_000)))
    assert len(shapes) == 0


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes_module, "SHAPES_MAX", 10)
    shapes = Shapes()
    for number in range(35):
        one = instance(number, "p", instance_pb2.InstanceSpec(security_level=number))
        assert shapes.request(one) == build_request(one)
        assert len(shapes) <= 10
