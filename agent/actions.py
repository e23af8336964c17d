"""What the diff may ask of the drivers: one frozen value per effect.

**Pure**: values only. Every action is idempotent, and every prefix of a Work's actions is a state that
the next round can go on from.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.intent import InstanceIntent, Refusal
from agent.net.driver import (
    GroupIntent,
    NetworkIntent,
    PortIntent,
    RemotePort,
    RouterDirectory,
    RouterIntent,
)
from agent.storage.driver import DiskSpec, SeedSpec
from cumulet.v1 import image_pb2


@dataclass(frozen=True, slots=True)
class Need:
    """Go on only when the work of this key is done; else stop here without a failure.

    The end of that work starts another round, so nothing waits and a change of plan is never held up.
    """

    key: str


@dataclass(frozen=True, slots=True)
class EnsureImage:
    file: image_pb2.ImageFile


@dataclass(frozen=True, slots=True)
class EnsureDisk:
    spec: DiskSpec


@dataclass(frozen=True, slots=True)
class EnsureSeed:
    spec: SeedSpec


@dataclass(frozen=True, slots=True)
class EnsureNetwork:
    network: NetworkIntent


@dataclass(frozen=True, slots=True)
class EnsurePort:
    port: PortIntent


@dataclass(frozen=True, slots=True)
class EnsureDirectory:
    """Where the network's ports on other nodes are."""

    network_uid: str
    remotes: frozenset[RemotePort]


@dataclass(frozen=True, slots=True)
class EnsureGroup:
    group: GroupIntent


@dataclass(frozen=True, slots=True)
class EnsureRouter:
    router: RouterIntent


@dataclass(frozen=True, slots=True)
class EnsureRouterDirectory:
    """Where the ports of the router's networks on other nodes are, and where its static routes lead."""

    router_uid: str
    directory: RouterDirectory


@dataclass(frozen=True, slots=True)
class StartDomain:
    """`after_crash`: an automatic restart, which is counted and limited."""

    instance: InstanceIntent
    after_crash: bool = False


@dataclass(frozen=True, slots=True)
class RequestShutdown:
    """Press the power button of the run that `boots` started."""

    uid: str
    boots: int


@dataclass(frozen=True, slots=True)
class ForceOff:
    uid: str


@dataclass(frozen=True, slots=True)
class RemoveDomain:
    uid: str


@dataclass(frozen=True, slots=True)
class RemovePort:
    uid: str


@dataclass(frozen=True, slots=True)
class RemoveFiles:
    uid: str


@dataclass(frozen=True, slots=True)
class RemoveNetwork:
    uid: str


@dataclass(frozen=True, slots=True)
class RemoveGroup:
    uid: str


@dataclass(frozen=True, slots=True)
class RemoveRouter:
    uid: str


@dataclass(frozen=True, slots=True)
class DropImages:
    unused: frozenset[str]


Action = (
    Need
    | EnsureImage
    | EnsureDisk
    | EnsureSeed
    | EnsureNetwork
    | EnsurePort
    | EnsureDirectory
    | EnsureGroup
    | EnsureRouter
    | EnsureRouterDirectory
    | StartDomain
    | RequestShutdown
    | ForceOff
    | RemoveDomain
    | RemovePort
    | RemoveFiles
    | RemoveNetwork
    | RemoveGroup
    | RemoveRouter
    | DropImages
)


@dataclass(frozen=True, slots=True)
class Work:
    """Actions on one object, in order. Works of different keys never wait for each other."""

    key: str
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, what is refused, and when time alone may change the answer (monotonic)."""

    works: tuple[Work, ...]
    refusals: tuple[Refusal, ...]
    wake_at: float | None


IMAGES_KEY = "images"


def image_key(sha256: str) -> str:
    return f"image/{sha256}"


def network_key(uid: str) -> str:
    return f"network/{uid}"


def directory_key(network_uid: str) -> str:
    return f"directory/{network_uid}"


def group_key(uid: str) -> str:
    return f"group/{uid}"


def router_key(uid: str) -> str:
    return f"router/{uid}"


def router_directory_key(router_uid: str) -> str:
    return f"router-directory/{router_uid}"


def port_key(uid: str) -> str:
    return f"port/{uid}"


def instance_key(uid: str) -> str:
    return f"instance/{uid}"
