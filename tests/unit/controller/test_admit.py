"""Admission: every refusal is typed, names its field and says what to do; what passes is complete.

**Pure.**
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.admit import common, flavor, image, instance, keypair, network, node, project, subnet
from controller.commit import Change
from controller.store import keys
from controller.tables import Stored
from cumulet.errors import (
    AlreadyExistsError,
    ConflictError,
    CumuletError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    QuotaExceededError,
)
from cumulet.v1 import agent_pb2, image_pb2, instance_pb2, meta_pb2, network_pb2, node_pb2
from tests.unit.controller import cloud
from tests.unit.controller.cloud import Paper

Act = Callable[[Paper], Any]
ATTACH = instance_pb2.NetworkAttachment


def _create(module: Any, message: Any, scope: str = "p1", **more: Any) -> Act:
    return lambda paper: module.create(paper.state, paper.context, scope, message, **more)


def _vm(name: str = "web", **spec: Any) -> Act:
    return _create(instance, cloud.instance_message(name, **spec))


def _subnet(name: str = "lan-b", **spec: Any) -> Act:
    return _create(subnet, cloud.subnet_message(name, **spec))


def _image(**spec: Any) -> Act:
    message = image_pb2.Image(meta=meta_pb2.Meta(name="other"))
    message.spec.CopyFrom(image_pb2.ImageSpec(disk=image_pb2.ImageFile(sha256=cloud.SHA)))
    message.spec.MergeFrom(image_pb2.ImageSpec(**spec))
    return _create(image, message, held=cloud.held)


def _update(module: Any, parts: Sequence[str], message: Any, *paths: str) -> Act:
    mask = FieldMask(paths=paths)
    return lambda paper: module.update(paper.state, paper.context, tuple(parts), message, mask)


def _node_update(**spec: Any) -> Act:
    return _update(node, ("n1",), node_pb2.Node(spec=node_pb2.NodeSpec(**spec)), "spec")


def _labelled(labels: dict[str, str]) -> Act:
    message = cloud.flavor_message("other")
    message.meta.labels.update(labels)
    return _create(flavor, message)


BAD: list[tuple[str, Act, set[str], str]] = [
    ("unknown flavor", _vm(flavor="huge"), {"spec.flavor"}, "there are: small"),
    ("no flavor", _vm(flavor=""), {"spec.flavor"}, "a flavor is required"),
    ("unknown image", _vm(image="beos"), {"spec.image"}, "there are: debian"),
    ("unknown network", _vm(networks=[ATTACH(network="wan")]), {"spec.networks[0].network"}, "are: lan"),
    ("no network", _vm(networks=[]), {"spec.networks"}, "at least one network (there are: lan)"),
    ("nine networks", _vm(networks=[ATTACH(network="lan")] * 9), {"spec.networks"}, "at most 8"),
    ("unknown key pair", _vm(key_pairs=["me", "you"]), {"spec.key_pairs[1]"}, "there are: me"),
    ("many key pairs", _vm(key_pairs=["me"] * 33), {"spec.key_pairs"}, "at most 32"),
    ("user-data", _vm(user_data=b"x" * 16385), {"spec.user_data"}, "fetch the rest from inside the guest"),
    ("stop timeout", _vm(stop_timeout_s=-1), {"spec.stop_timeout_s"}, "between 0"),
    ("selector", _vm(node_selector={"-": ""}), {"spec.node_selector"}, "not a label's key"),
    ("power state", _vm(power=7), {"spec.power"}, "ON or OFF"),
    (
        "address words",
        _vm(networks=[ATTACH(network="lan", address="ten")]),
        {"spec.networks.address"},
        "not an",
    ),
    (
        "address outside",
        _vm(networks=[ATTACH(network="lan", address="10.9.0.4")]),
        {"spec.networks.address"},
        "10.0.0.0/24 (lan-a)",
    ),
    (
        "address of the gateway",
        _vm(networks=[ATTACH(network="lan", address="10.0.0.1")]),
        {"spec.networks.address"},
        "reserved",
    ),
    (
        "address of the broadcast",
        _vm(networks=[ATTACH(network="lan", address="10.0.0.255")]),
        {"spec.networks.address"},
        "reserved",
    ),
    (
        "everything at once",
        _vm(flavor="x", image="y", networks=[]),
        {"spec.flavor", "spec.image", "spec.networks"},
        "",
    ),
    ("name", _vm("Web_1"), {"meta.name"}, "lower-case"),
    ("no name", _vm(""), {"meta.name"}, "is required"),
    ("cidr words", _subnet(cidr="ten/8"), {"spec.cidr"}, "such as 10.0.0.0/24"),
    ("cidr host bits", _subnet(cidr="10.1.0.7/24"), {"spec.cidr"}, "host bits"),
    ("cidr too small", _subnet(cidr="10.1.0.0/30"), {"spec.cidr"}, "between /8 and /29"),
    ("cidr of loopback", _subnet(cidr="127.0.0.0/24"), {"spec.cidr"}, "reserved"),
    ("cidr of transit", _subnet(cidr="100.64.0.0/24"), {"spec.cidr"}, "reserved"),
    ("cidr IPv6 not /64", _subnet(cidr="fd00::/56"), {"spec.cidr"}, "make their addresses themselves"),
    ("cidr of IPv6 links", _subnet(cidr="fe80::/64"), {"spec.cidr"}, "reserved"),
    ("gateway of the other family", _subnet(cidr="fd00::/64", gateway="10.0.0.1"), {"spec.gateway"}, "host"),
    ("overlap", _subnet(cidr="10.0.0.128/25"), {"spec.cidr"}, "overlaps subnet lan-a (10.0.0.0/24)"),
    ("overlap around", _subnet(cidr="10.0.0.0/16"), {"spec.cidr"}, "overlaps subnet lan-a"),
    ("gateway outside", _subnet(cidr="10.1.0.0/24", gateway="10.2.0.1"), {"spec.gateway"}, "host address"),
    ("gateway words", _subnet(cidr="10.1.0.0/24", gateway="first"), {"spec.gateway"}, "IP address"),
    ("gateway is broadcast", _subnet(cidr="10.1.0.0/24", gateway="10.1.0.255"), {"spec.gateway"}, "host"),
    ("dns words", _subnet(cidr="10.1.0.0/24", dns_servers=["one"]), {"spec.dns_servers"}, "IP address"),
    ("dns many", _subnet(cidr="10.1.0.0/24", dns_servers=["1.1.1.1"] * 4), {"spec.dns_servers"}, "most 3"),
    ("subnet of nothing", _subnet(cidr="10.1.0.0/24", network="wan"), {"spec.network"}, "does not exist"),
    (
        "flavor of nothing",
        _create(flavor, cloud.flavor_message("x", vcpu=0)),
        {"spec.resources.vcpu"},
        "least 1",
    ),
    (
        "flavor negative",
        _create(flavor, cloud.flavor_message("x", disk_gib=-1)),
        {"spec.resources.disk_gib"},
        "",
    ),
    ("flavor absurd", _create(flavor, cloud.flavor_message("x", vcpu=10**6)), {"spec.resources.vcpu"}, ""),
    ("label key", _labelled({"a b": "c"}), {"meta.labels"}, "not a label's key"),
    ("label value", _labelled({"a": "x" * 257}), {"meta.labels"}, "at most 256"),
    ("label newline", _labelled({"a": "x\ny"}), {"meta.labels"}, "printable"),
    ("labels many", _labelled({f"k{number}": "" for number in range(65)}), {"meta.labels"}, "at most 64"),
    ("key empty", _create(keypair, cloud.keypair_message("x", "")), {"spec.public_key"}, "id_ed25519.pub"),
    (
        "key damaged",
        _create(keypair, cloud.keypair_message("x", "ssh-rsa !!")),
        {"spec.public_key"},
        "whole line",
    ),
    (
        "key not ASCII",
        _create(keypair, cloud.keypair_message("x", "ssh-rsa ä")),
        {"spec.public_key"},
        "whole line",
    ),
    (
        "key of another type",
        _create(keypair, cloud.keypair_message("x", cloud.ED25519.replace("ed25519", "rsa", 1))),
        {"spec.public_key"},
        "another type",
    ),
    (
        "key lines",
        _create(keypair, cloud.keypair_message("x", f"{cloud.ED25519}\n{cloud.ED25519}")),
        {"spec.public_key"},
        "one printable line",
    ),
    (
        "image never uploaded",
        _image(disk=image_pb2.ImageFile(sha256="cd" * 32)),
        {"spec.disk.sha256"},
        "upload it",
    ),
    (
        "image kernel alone",
        _image(kernel=image_pb2.ImageFile(sha256="x")),
        {"spec.initrd"},
        "both or neither",
    ),
    (
        "image disk as kernel",
        _image(kernel=image_pb2.ImageFile(sha256=cloud.SHA), initrd=image_pb2.ImageFile(sha256=cloud.SHA)),
        {"spec.kernel.format", "spec.initrd.format"},
        "cannot be used here",
    ),
    ("image arguments", _image(kernel_args="a\0b"), {"spec.kernel_args"}, "printable"),
    ("image machine", _image(architecture="X 86"), {"spec.architecture"}, "x86_64"),
    ("image memory", _image(min_memory_mib=-1), {"spec.min_memory_mib"}, "negative"),
    (
        "quota",
        _create(project, cloud.project_message("x", instances=-1)),
        {"spec.quota.instances"},
        "negative",
    ),
    ("ratio", _node_update(allocation_ratio={"vcpu": 0.0}), {"spec.allocation_ratio.vcpu"}, "at most 64"),
    ("ratio nan", _node_update(allocation_ratio={"vcpu": float("nan")}), {"spec.allocation_ratio.vcpu"}, ""),
    ("level", _node_update(security_level=6), {"spec.security_level"}, "0 to 5"),
    ("reserved", _node_update(reserved=meta_pb2.Resources(vcpu=-1)), {"spec.reserved.vcpu"}, ""),
    (
        "mask of a fixed field",
        _update(flavor, ("small",), cloud.flavor_message(), "meta.name"),
        {"update_mask"},
        "what can: meta.labels, spec.description, spec.resources",
    ),
    (
        "mask of no field",
        _update(flavor, ("small",), cloud.flavor_message(), "spec.resources.cpu"),
        {"update_mask"},
        "does not exist",
    ),
    (
        "mask of output",
        _update(instance, ("p1", "old"), cloud.instance_message("old"), "spec.boots"),
        {"update_mask"},
        "cannot be changed",
    ),
]


def _prepared() -> Paper:
    paper = Paper().seed()
    paper.add_node()
    paper.add_instance("old")
    return paper


@pytest.mark.parametrize(("act", "fields", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_field_is_named_with_what_to_do(act: Act, fields: set[str], text: str) -> None:
    paper = _prepared()
    revision = paper.state.revision
    with pytest.raises(InvalidArgumentError) as refused:
        act(paper)
    assert cloud.fields_of(refused.value.violations) == fields
    assert text in str(refused.value)
    assert paper.state.revision == revision


def _put(paper: Paper, table: keys.Table, parts: tuple[str, ...], change: Callable[[Any], None]) -> None:
    row = paper.state.find(table, *parts)
    assert row is not None
    message = type(row.message)()
    message.CopyFrom(row.message)
    change(message)
    paper.put(table, parts, message)


def _deleted(message: Any) -> None:
    message.meta.deleted_at.FromSeconds(1)


def _with(prepare: Callable[[Paper], Any], act: Act) -> Act:
    def acting(paper: Paper) -> Any:
        prepare(paper)
        return act(paper)

    return acting


def _delete(module: Any, *parts: str, etag: str = "") -> Act:
    return lambda paper: module.delete(paper.state, paper.context, parts, etag)


def _etagged(etag: str) -> Any:
    message = cloud.flavor_message()
    message.meta.etag = etag
    return message


TAKEN = "10.0.0.77"
REFUSED: list[tuple[str, Act, type[CumuletError], str]] = [
    ("name taken", _vm("old"), AlreadyExistsError, "instance p1/old exists already"),
    ("project unknown", _create(instance, cloud.instance_message(), "p9"), NotFoundError, "project p9"),
    (
        "name being deleted",
        _with(lambda paper: _put(paper, keys.INSTANCES, ("p1", "old"), _deleted), _vm("old")),
        FailedPreconditionError,
        "still being deleted",
    ),
    ("stale etag", _delete(flavor, "small", etag="1"), ConflictError, "read it again"),
    (
        "stale etag of an update",
        _update(flavor, ("small",), _etagged("1"), "spec.description"),
        ConflictError,
        "changed since you read it",
    ),
    ("nothing to delete", _delete(flavor, "none"), NotFoundError, "flavor none does not exist"),
    ("image in use", _delete(image, "debian"), FailedPreconditionError, "such as p1/old"),
    ("network with subnets", _delete(network, "p1", "lan"), FailedPreconditionError, "lan-a: delete them"),
    ("subnet in use", _delete(subnet, "p1", "lan-a"), FailedPreconditionError, "delete their instances"),
    ("project in use", _delete(project, "p1"), FailedPreconditionError, "still holds 1 instance(s)"),
    (
        "node in use",
        _with(lambda paper: paper.place("old"), _delete(node, "n1")),
        FailedPreconditionError,
        "--force forgets them",
    ),
    (
        "protected",
        _with(
            lambda paper: paper.add_instance("safe", deletion_protection=True),
            _delete(instance, "p1", "safe"),
        ),
        FailedPreconditionError,
        "protected",
    ),
    (
        "reboot of what is off",
        _with(
            lambda paper: paper.add_instance("off", power=instance_pb2.POWER_STATE_OFF),
            lambda paper: instance.reboot(paper.state, paper.context, ("p1", "off"), False),
        ),
        FailedPreconditionError,
        "is stopped",
    ),
    (
        "start of what is deleted",
        _with(
            lambda paper: _put(paper, keys.INSTANCES, ("p1", "old"), _deleted),
            lambda paper: instance.start(paper.state, paper.context, ("p1", "old")),
        ),
        FailedPreconditionError,
        "being deleted",
    ),
    (
        "network without a subnet",
        _with(
            lambda paper: paper.do(
                network.create(paper.state, paper.context, "p1", cloud.network_message("bare"))
            ),
            _vm(networks=[ATTACH(network="bare")]),
        ),
        FailedPreconditionError,
        "has no subnet",
    ),
    (
        "instances at the quota",
        _with(
            lambda paper: _put(
                paper, keys.PROJECTS, ("p1",), lambda found: setattr(found.spec.quota, "instances", 1)
            ),
            _vm(),
        ),
        QuotaExceededError,
        "instances: 1 of 1 are used",
    ),
    (
        "memory over the quota",
        _with(
            lambda paper: _put(
                paper,
                keys.PROJECTS,
                ("p1",),
                lambda found: setattr(found.spec.quota.resources, "memory_mib", 1000),
            ),
            _vm(),
        ),
        QuotaExceededError,
        "memory_mib: 512 of 1000 are used, 512 more",
    ),
    (
        "networks at the quota",
        _with(
            lambda paper: _put(
                paper, keys.PROJECTS, ("p1",), lambda found: setattr(found.spec.quota, "networks", 1)
            ),
            _create(network, cloud.network_message("two")),
        ),
        QuotaExceededError,
        "networks: 1 of 1",
    ),
]


@pytest.mark.parametrize(
    ("act", "kind", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_refusal_by_the_state_names_the_object(act: Act, kind: type[CumuletError], text: str) -> None:
    paper = _prepared()
    with pytest.raises(kind) as refused:
        act(paper)
    assert type(refused.value) is kind
    assert text in str(refused.value)


def test_an_address_is_taken_once() -> None:
    paper = _prepared()
    paper.add_instance("first", networks=[ATTACH(network="lan", address=TAKEN)])
    with pytest.raises(InvalidArgumentError, match=f"{TAKEN} is taken"):
        _vm("second", networks=[ATTACH(network="lan", address=TAKEN)])(paper)
    with pytest.raises(InvalidArgumentError, match=f"{TAKEN} is taken"):
        _vm(
            "third",
            networks=[ATTACH(network="lan", address="10.0.0.78"), ATTACH(network="lan", address=TAKEN)],
        )(paper)


def test_a_full_network_says_so() -> None:
    paper = Paper().seed()
    paper.do(network.create(paper.state, paper.context, "p1", cloud.network_message("tiny")))
    paper.do(_subnet("tiny-a", cidr="10.5.0.0/29", network="tiny")(paper))
    for number in range(5):
        paper.add_instance(f"vm{number}", networks=[ATTACH(network="tiny")])
    with pytest.raises(FailedPreconditionError, match="all addresses of network p1/tiny are taken"):
        _vm("six", networks=[ATTACH(network="tiny")])(paper)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 3), min_size=1, max_size=12))
def test_addresses_macs_and_ports_are_unique_and_inside(seed: int, counts: list[int]) -> None:
    paper = Paper(seed).seed()
    for number, ports in enumerate(counts):
        paper.add_instance(f"vm{number}", networks=[ATTACH(network="lan")] * ports)
    rows = paper.state.rows(keys.PORTS, "p1").values()
    addresses = [fixed.address for row in rows for fixed in row.message.spec.addresses]
    assert len(addresses) == len(set(addresses)) == sum(counts)
    assert len({row.message.spec.mac for row in rows}) == sum(counts)
    assert all(2 <= int(address.split(".")[3]) <= 254 for address in addresses)
    assert all(int(row.message.spec.mac[:2], 16) & 3 == 2 for row in rows)
    lan = paper.state.find(keys.NETWORKS, "p1", "lan")
    assert lan is not None
    assert set(paper.state.addresses_in(lan.message.meta.uid)) == set(addresses)


def test_a_new_instance_is_complete() -> None:
    paper = Paper().seed()
    given_spec = {
        "key_pairs": ["me"],
        "user_data": b"#cloud-config",
        "resources": meta_pb2.Resources(vcpu=99),
    }
    made = paper.add_instance("web", **given_spec)
    spec = made.spec
    assert (spec.resources.vcpu, spec.boots, spec.power) == (1, 1, instance_pb2.POWER_STATE_ON)
    assert spec.image_files.disk.virtual_size_bytes == 2 << 30
    assert list(spec.authorized_keys) == [cloud.ED25519]
    (port,) = paper.state.ports_of("p1", "web")
    assert spec.networks[0].port_uid == port.message.meta.uid
    assert spec.networks[0].address == port.message.spec.addresses[0].address
    ((_, operation),) = paper.state.operations_of(made.meta.uid)
    assert (operation.message.verb, operation.message.goal_boots) == ("instance.create", 1)


def test_output_fields_of_the_caller_are_not_believed() -> None:
    message = cloud.instance_message(
        "web", boots=7, security_level=5, power_forced=True, authorized_keys=["x"]
    )
    message.meta.uid, message.meta.generation = "mine", 9
    message.status.phase = instance_pb2.INSTANCE_PHASE_RUNNING
    paper = Paper().seed()
    paper.do(instance.create(paper.state, paper.context, "p1", message))
    made = paper.instance()
    assert made.meta.uid != "mine"
    assert (made.meta.generation, made.spec.boots, made.spec.security_level) == (1, 1, 0)
    assert not made.spec.power_forced
    assert not made.spec.authorized_keys
    assert not made.HasField("status")


def test_power_verbs_count_boots_once() -> None:
    paper = Paper().seed()
    paper.add_instance()
    where = ("p1", "web")
    boots = []
    verbs: list[Callable[[], Change]] = [
        lambda: instance.start(paper.state, paper.context, where),  # it is on its way already
        lambda: instance.stop(paper.state, paper.context, where, True),
        lambda: instance.start(paper.state, paper.context, where),
        lambda: instance.reboot(paper.state, paper.context, where, False),
    ]
    for verb in verbs:
        paper.do(verb())
        boots.append((paper.instance().spec.boots, paper.instance().spec.power_forced))
    assert boots == [(1, False), (1, True), (2, False), (3, False)]


def test_deleting_twice_gives_the_first_operation() -> None:
    paper = Paper().seed()
    paper.add_instance()
    first = paper.do(instance.delete(paper.state, paper.context, ("p1", "web"), ""))
    again = instance.delete(paper.state, paper.context, ("p1", "web"), "")
    assert again.result == first
    assert not again.writes


@pytest.mark.parametrize(
    ("paths", "labels", "description", "generation"),
    [
        (["meta.labels"], {"b": "2"}, "", 1),
        (["spec.description"], {"a": "1"}, "new", 2),
        (["spec.resources.vcpu"], {"a": "1"}, "", 2),
        ([], {"b": "2"}, "new", 2),
    ],
)
def test_a_mask_takes_its_fields_only(
    paths: list[str], labels: dict[str, str], description: str, generation: int
) -> None:
    paper = Paper()
    first = cloud.flavor_message()
    first.meta.labels["a"] = "1"
    paper.do(flavor.create(paper.state, paper.context, "", first))
    changed = cloud.flavor_message(vcpu=2)
    changed.meta.labels["b"] = "2"
    changed.spec.description = "new"
    paper.do(flavor.update(paper.state, paper.context, ("small",), changed, FieldMask(paths=paths)))
    row = paper.state.find(keys.FLAVORS, "small")
    assert row is not None
    assert dict(row.message.meta.labels) == labels
    assert row.message.spec.description == description
    assert row.message.spec.resources.memory_mib == 512
    assert row.message.meta.generation == generation


def _races() -> list[tuple[str, Act, Act]]:
    bare = cloud.subnet_message("bare-a", "10.7.0.0/24", network="bare")
    return [
        ("quota", _vm("one"), _vm("two")),
        ("name", _vm("one"), _vm("one")),
        ("overlap", _subnet("x", cidr="10.3.0.0/24"), _subnet("y", cidr="10.3.0.0/25")),
        ("subnet under a network", _create(subnet, bare), _delete(network, "p1", "bare")),
        ("network under a subnet", _delete(network, "p1", "bare"), _create(subnet, bare)),
        (
            "instance in a project",
            _create(network, cloud.network_message("z"), "empty"),
            _delete(project, "empty"),
        ),
        (
            "project under a network",
            _delete(project, "empty"),
            _create(network, cloud.network_message("z"), "empty"),
        ),
        ("image under an instance", _vm("one"), _delete(image, "debian")),
        ("instance of an image", _delete(image, "debian"), _vm("one")),
        ("port of a subnet", _vm("one"), _delete(subnet, "p1", "lan-a")),
        ("subnet of a port", _delete(subnet, "p1", "lan-a"), _vm("one")),
        (
            "address",
            _vm("one", networks=[ATTACH(network="lan", address=TAKEN)]),
            _vm("two", networks=[ATTACH(network="lan", address=TAKEN)]),
        ),
        (
            "etag",
            _update(flavor, ("small",), cloud.flavor_message(), "spec.description"),
            _update(flavor, ("small",), cloud.flavor_message(), "spec.resources"),
        ),
    ]


@pytest.mark.parametrize(("first", "second"), [row[1:] for row in _races()], ids=[row[0] for row in _races()])
def test_of_two_that_contradict_each_other_the_second_is_refused_by_its_guards(
    first: Act, second: Act
) -> None:
    """Both are admitted on one State, as two replicas would; the store has the last word."""
    paper = Paper().seed()
    paper.do(project.create(paper.state, paper.context, "", cloud.project_message("empty")))
    paper.do(network.create(paper.state, paper.context, "p1", cloud.network_message("bare")))
    changes: list[Change] = [first(paper), second(paper)]
    assert paper.holds(changes[0])
    assert paper.holds(changes[1])
    paper.do(changes[0])
    assert not paper.holds(changes[1])


def test_a_node_registers_once_and_is_not_made_by_a_bad_name() -> None:
    paper = Paper().seed()
    hello = agent_pb2.AgentHello(node="n1", labels={"rack": "r1"})
    paper.do(node.register(paper.state, paper.context, hello))
    assert node.register(paper.state, paper.context, hello) is None
    with pytest.raises(InvalidArgumentError, match="agent of"):
        node.register(paper.state, paper.context, agent_pb2.AgentHello(node="no/de"))


def test_cordon_is_idempotent() -> None:
    paper = _prepared()
    paper.do(node.cordon(paper.state, paper.context, "n1", True, "disk"))
    assert not node.cordon(paper.state, paper.context, "n1", True, "disk").writes
    paper.do(node.cordon(paper.state, paper.context, "n1", False, "ignored"))
    row = paper.state.find(keys.NODES, "n1")
    assert row is not None
    assert (row.message.spec.cordoned, row.message.spec.cordon_reason) == (False, "")


def test_a_forgotten_placement_leaves_its_epoch() -> None:
    paper = _prepared()
    paper.place("old", epoch=4)
    uid = paper.instance("old").meta.uid
    paper.do(node.delete(paper.state, paper.context, ("n1",), "", force=True))
    paper.do(node.forget_placement(paper.state, paper.context, "n1", uid))
    status = paper.state.status_of(uid)
    assert status is not None
    assert status.epoch == 4
    assert paper.state.placement_of(uid) is None


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_public_key_raises(data: bytes) -> None:
    assert keypair.public_key_error(data.decode("latin-1")) is not None


def test_a_large_object_is_refused_before_the_store_sees_it() -> None:
    with pytest.raises(InvalidArgumentError, match="at most 262144"):
        common.encode(network_pb2.Network(spec=network_pb2.NetworkSpec(description="x" * 300_000)))


def test_what_is_stored_is_not_changed_by_admission() -> None:
    paper = _prepared()
    rows: dict[Any, Stored] = dict(paper.state.rows(keys.INSTANCES))
    before = {parts: row.message.SerializeToString(deterministic=True) for parts, row in rows.items()}
    for act in (
        lambda: instance.stop(paper.state, paper.context, ("p1", "old"), True),
        lambda: instance.delete(paper.state, paper.context, ("p1", "old"), ""),
        lambda: _update(instance, ("p1", "old"), cloud.instance_message("old"), "meta.labels")(paper),
    ):
        act()
    assert before == {parts: row.message.SerializeToString(deterministic=True) for parts, row in rows.items()}
