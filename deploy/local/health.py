"""Real health of each part: etcd commits, libvirt answers, the API serves, the node is Ready.

**Edge**: HTTP, libvirt and gRPC calls on this machine. Every check returns None, or what is missing.
"""

from __future__ import annotations

import http.client
import json
from typing import Any, Final

import grpc
import libvirt
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cumulet.client import Client
from cumulet.errors import CumuletError
from cumulet.v1 import meta_pb2, node_pb2
from deploy.local.address import answers
from deploy.local.layout import LOOPBACK, Layout
from deploy.local.services import LIBVIRT_SOCKET

CALL_TIMEOUT_S: Final = 5.0
LIBVIRT_URI: Final = "qemu:///system"


def check_etcd(layout: Layout) -> str | None:
    """etcd's own health check: it has a leader and reads linearizably."""
    connection = http.client.HTTPConnection(LOOPBACK, layout.ports.etcd_client, timeout=CALL_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        body = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as err:
        return f"etcd at {layout.etcd_address} does not answer ({err})"
    finally:
        connection.close()
    return None if str(body.get("health")) == "true" else f"etcd at {layout.etcd_address} says {body}"


def check_libvirt() -> str | None:
    """The QEMU driver answers a call."""
    if not answers(LIBVIRT_SOCKET):
        return f"nobody listens on {LIBVIRT_SOCKET}"
    try:
        connection = libvirt.open(LIBVIRT_URI)
        try:
            connection.getLibVersion()
        finally:
            connection.close()
    except libvirt.libvirtError as err:
        return f"libvirt at {LIBVIRT_URI}: {err}"
    return None


def check_controller(layout: Layout) -> str | None:
    """The API says SERVING by gRPC's health protocol."""
    if not answers(layout.controller_target):
        return f"nobody listens on {layout.controller_target}"
    with grpc.insecure_channel(layout.controller_target) as channel:
        try:
            health: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs know no methods
            reply = health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as err:
            return f"the API at {layout.controller_target} does not answer ({_describe(err)})"
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return f"the API at {layout.controller_target} says {name}"


def check_node(layout: Layout) -> str | None:
    """The node's agent has a session with the controller: its condition Ready is true."""
    if not answers(layout.controller_target):
        return f"nobody listens on {layout.controller_target}"
    with Client([layout.controller_target], timeout_s=CALL_TIMEOUT_S) as cloud:
        try:
            node: node_pb2.Node = cloud.get("node", layout.node)
        except CumuletError as err:
            return f"node {layout.node}: {err.message}"
    return node_ailment(node)


def node_ailment(node: node_pb2.Node) -> str | None:
    """Why the node is not Ready, or None. **Pure.**"""
    for condition in node.status.conditions:
        if condition.type == "Ready":
            if condition.status == meta_pb2.CONDITION_STATUS_TRUE:
                return None
            return f"node {node.meta.name} is not Ready: {condition.message or condition.reason}"
    return f"node {node.meta.name} has no condition Ready yet"


def _describe(error: grpc.RpcError) -> str:
    code = error.code().name if hasattr(error, "code") else "UNKNOWN"
    details = error.details() if hasattr(error, "details") else str(error)
    return f"{code}: {details}"
