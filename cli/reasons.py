"""What every reason means and what helps: errors, conditions and events, for `cumulet explain REASON`.

**Pure**: a table, offline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Meaning:
    """One reason: what it says, and commands that help."""

    text: str
    tries: tuple[str, ...] = ()


_ERRORS: Final = {
    "INTERNAL": Meaning(
        "A fault of the cloud itself. Its log has the rest under the trace id that the error shows.",
        ("cumulet status", "cumulet doctor"),
    ),
    "INVALID_ARGUMENT": Meaning(
        "A field of the request is wrong; each one is listed with what to write. Nothing was changed.",
        ("cumulet explain instance.spec",),
    ),
    "NOT_FOUND": Meaning(
        "No object of this name, uid or uid prefix is in the project that was asked.",
        ("cumulet context show", "cumulet ls --all-projects"),
    ),
    "ALREADY_EXISTS": Meaning(
        "The name is taken in this project. Names are free again when the object is gone, not when its "
        "deletion was asked for.",
        ("cumulet ls",),
    ),
    "CONFLICT": Meaning(
        "Somebody else changed the object, or what the change rests on, since it was read. Read it again, "
        "then decide again.",
        ("cumulet events",),
    ),
    "FAILED_PRECONDITION": Meaning(
        "The object's state does not allow it: in use, being deleted, protected against deletion, or off.",
        ("cumulet events",),
    ),
    "QUOTA_EXCEEDED": Meaning(
        "The project would hold more than its quota. Delete something, or ask an operator for more.",
        ("cumulet project show default",),
    ),
    "NO_CAPACITY": Meaning(
        "No node fits now. A created instance stays Pending and is placed as soon as one does; the reasons "
        "of every node are in the explanation.",
        ("cumulet node list", "cumulet ls"),
    ),
    "TOO_LARGE": Meaning("A message or a field is over its limit. The message names the limit.", ()),
    "PERMISSION_DENIED": Meaning(
        "You may not do this. The message names the permission that is missing.", ()
    ),
    "REVISION_GONE": Meaning(
        "A watch or a page token asked for history that is no longer kept. Start again from the present.",
        ("cumulet ls",),
    ),
    "UNAVAILABLE": Meaning(
        "Nobody can answer at the moment: no controller at the endpoint, no leader, or no etcd. Trying again "
        "helps; the client has done so already.",
        ("cumulet context show", "cumulet status", "cumulet up"),
    ),
    "TIMED_OUT": Meaning(
        "The waiting ended, the work did not: it goes on.", ("cumulet operation list", "cumulet events")
    ),
    "OPERATION_FAILED": Meaning(
        "The object ended as something else than was asked for. Its newest condition says why.",
        ("cumulet events", "cumulet ls"),
    ),
}

_PLACEMENT: Final = {
    "Scheduled": Meaning("The scheduler chose a node, and the placement is committed."),
    "Placed": Meaning("The scheduler chose a node, and the placement is committed."),
    "NoCapacity": Meaning(
        "No node fits now; the instance waits and is tried again whenever a node changes.",
        ("cumulet node list",),
    ),
    "PlannerFault": Meaning(
        "The planner and its independent checker do not agree on where the instance may go. This is a fault "
        "of ours: nothing was placed, the instance is set apart and tried again, and all others go on.",
        ("cumulet events", "cumulet node list"),
    ),
    "Cordoned": Meaning("The node takes no new instances; those that run stay.", ("cumulet node list",)),
    "Uncordoned": Meaning("The node takes new instances again."),
}

_RUNNING: Final = {
    "Preparing": Meaning("The node fetches the image and makes disk and network."),
    "Starting": Meaning("The node boots the instance."),
    "Running": Meaning("The virtual machine runs. Whether its guest has an address is AddressReady's word."),
    "Stopping": Meaning("The guest was asked to shut down; after its stop timeout it is forced off."),
    "Stopped": Meaning("The virtual machine is off; its disk and addresses are kept."),
    "Failed": Meaning("The node has given up. The message says on what.", ("cumulet events",)),
    "NotStarted": Meaning("The disk is there, and the instance is meant to be off."),
    "NotRunning": Meaning("The guest does not run, so that it cannot hold an address."),
    "Leased": Meaning("The guest took its address by DHCP."),
    "GuestPoweredOff": Meaning("The guest shut itself down. It stays off until it is started."),
    "ForcedOff": Meaning("The power was cut, since the guest did not shut down in time or by --force."),
    "HostDown": Meaning("The instance ended with its node's machine; it is booted when the node is back."),
    "EmulatorDied": Meaning("The QEMU process died. It is restarted, with a growing pause each time."),
    "CrashLoop": Meaning(
        "It crashed again and again, and is not restarted any more until somebody starts it.",
        ("cumulet events", "cumulet ls"),
    ),
    "StartFailed": Meaning("libvirt refused to start the virtual machine.", ("cumulet doctor",)),
    "NodeSilent": Meaning(
        "The node's agent does not answer: the instance may run or not. It is not started elsewhere.",
        ("cumulet node list",),
    ),
}

_NODE: Final = {
    "AgentConnected": Meaning("The node's agent has a session with the leader."),
    "AgentSilent": Meaning(
        "The node's agent does not answer. What runs there is left alone.", ("cumulet status",)
    ),
    "KVM": Meaning("Guests run on the processor's virtualization."),
    "Emulated": Meaning(
        "Guests are emulated in software (TCG): slow, and no border between tenants who do not trust "
        "each other.",
        ("cumulet doctor",),
    ),
    "UplinkTakenBack": Meaning(
        "When the node joined provider networks by one of its links, it lost its controller, so they were "
        "taken off the link again. A switch that allows one MAC on a port does that.",
        ("cumulet node show NODE",),
    ),
    "Joined": Meaning("The node's links to provider networks are in use."),
    "PlanAccepted": Meaning("The agent has taken the leader's newest plan."),
    "PlanRefused": Meaning("The agent refused a plan; its message says which part and why."),
    "BadPlan": Meaning("A plan contradicts itself. This is a fault of ours.", ("cumulet verify",)),
    "StaleEpoch": Meaning("A plan was older than one that the agent has acted on, and was refused."),
    "NewerCopy": Meaning("A newer copy of the instance is here; the older plan was refused."),
    "NodeForgotten": Meaning("The node was removed by force: its instances were forgotten without its word."),
    "NoLeader": Meaning("The agent found no leading controller.", ("cumulet status",)),
    "ObserveTimeout": Meaning("Looking at the host took too long; nothing is said of its instances."),
}

_DRIVER: Final = {
    "LibvirtUnavailable": Meaning("The agent cannot reach libvirtd.", ("cumulet doctor",)),
    "InvalidDomainSpec": Meaning("The virtual machine cannot be described to libvirt. The message says why."),
    "NftUnavailable": Meaning("The nft command is missing or does not run.", ("cumulet doctor",)),
    "NftRefused": Meaning("The kernel refused a ruleset; the network stays closed.", ("cumulet doctor",)),
    "DhcpUnavailable": Meaning("dnsmasq does not run for a network.", ("cumulet doctor",)),
    "NetworkMissing": Meaning("A port's network is not on the node yet."),
    "UplinkTooNarrow": Meaning(
        "The node's link to an operator's network carries smaller packets than the network was made for.",
        ("cumulet network show NETWORK",),
    ),
    "BpfRefused": Meaning(
        "The kernel refused the program that sends guests' frames out.", ("cumulet doctor",)
    ),
    "BpfUnavailable": Meaning("Provider networks need BPF, which is not known on this kind of machine."),
    "LinkVanished": Meaning("A network device disappeared while it was set up; it is made again."),
    "ImageMissing": Meaning("The image file is not on the node yet; it is being fetched."),
    "ImageNotFound": Meaning(
        "The controller does not hold the image file any more.", ("cumulet image list",)
    ),
    "ImageRefused": Meaning("The image file is not what its record says.", ("cumulet image list",)),
    "ImageDigestMismatch": Meaning(
        "The image file has other bytes than its record says; it is fetched anew."
    ),
    "ImageFormatMismatch": Meaning("The image file is of another format than its record says."),
    "DownloadBroken": Meaning("Fetching an image file broke off; it is resumed."),
    "DiskFull": Meaning("The node has no room for the disk.", ("cumulet node list", "cumulet doctor")),
    "DiskLost": Meaning("The instance's disk is gone from its node. It is not made anew by itself."),
    "ConsoleClosed": Meaning("The serial console was closed from the other side."),
    "Timeout": Meaning("A step on the node took too long; it is tried again."),
    "Internal": Meaning("A fault of the agent itself; its log has the rest.", ("cumulet status",)),
}

_REQUESTS: Final = {
    "Created": Meaning("Somebody asked for the object, and it was written."),
    "DeleteRequested": Meaning("Deletion was asked for; the node cleans up first."),
    "Deleted": Meaning("The object is gone, and nothing is left of it."),
    "StartRequested": Meaning("Somebody asked to boot the instance."),
    "StopRequested": Meaning("Somebody asked to shut the instance down."),
    "RebootRequested": Meaning("Somebody asked to boot the instance again."),
}

_FLOATING: Final = {
    "Announced": Meaning("One node answers for the floating IP's address."),
    "Moving": Meaning(
        "The address is to be answered for by another node, as soon as the present one has let it go, or was "
        "silent for 22 seconds."
    ),
    "Moved": Meaning("The floating IP got another target."),
    "Unused": Meaning(
        "The project holds the address; it leads nowhere yet.",
        ("cumulet floating-ip update NAME --target INSTANCE",),
    ),
    "TargetMissing": Meaning(
        "No instance and no port has this name any more. The address is kept, for when there is one again.",
        ("cumulet floating-ip update NAME --target INSTANCE",),
    ),
    "NoRouter": Meaning(
        "The target's network is in no router, and routers are what translates addresses.",
        ("cumulet router list",),
    ),
    "NoAddress": Meaning("The target has no IPv4 address that packets could be sent to."),
    "NotPlaced": Meaning("The target is on no node yet.", ("cumulet ls",)),
    "NoUplink": Meaning(
        "The target's node is not attached to the external network: its agent has no --uplink for it.",
        ("cumulet external-network list -o wide", "cumulet node list -o wide"),
    ),
    "UplinkMissing": Meaning(
        "A node needs a link to an operator's network that it does not have, or that is down.",
        ("cumulet external-network list -o wide", "cumulet node show NODE"),
    ),
    "NodeNotReady": Meaning(
        "The node that answers for the address does not answer its leader; the address may work or not.",
        ("cumulet node list",),
    ),
}

REASONS: Final[dict[str, Meaning]] = {
    **_ERRORS,
    **_PLACEMENT,
    **_RUNNING,
    **_NODE,
    **_DRIVER,
    **_REQUESTS,
    **_FLOATING,
}
