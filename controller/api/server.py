"""The gRPC server: a handler for every method of every service, or it does not start.

**Edge**: sockets. Handlers are found by the protos' descriptors; errors, traces and metrics are added in one
place (`_Calls`). The API listens on loopback and Unix sockets only, until TLS and authorization exist.
"""

from __future__ import annotations

import ipaddress
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from controller.admit import (
    externalnetwork,
    flavor,
    floatingip,
    image,
    instance,
    keypair,
    loadbalancer,
    network,
    node,
    placementgroup,
    port,
    project,
    router,
    securitygroup,
    subnet,
)
from controller.api.agent import AgentMethods
from controller.api.cloud import (
    EventMethods,
    ImageFileMethods,
    NodeMethods,
    OperationMethods,
    SystemMethods,
)
from controller.api.instance import Consoles, InstanceMethods
from controller.api.reach import ReachMethods
from controller.api.standard import Rules, Snapshots, StandardMethods
from controller.api.whatif import WhatIfMethods
from controller.controller import Controller
from controller.explain import foretell_placement
from controller.files import FileStore
from controller.reconcile.fleetview import FleetView
from controller.store import keys
from controller.store.protocol import StoreError
from cumulet import kinds
from cumulet.errors import CumuletError, InternalError, UnavailableError
from cumulet.v1 import (
    agent_pb2,
    event_pb2,
    externalnetwork_pb2,
    flavor_pb2,
    floatingip_pb2,
    image_pb2,
    instance_pb2,
    keypair_pb2,
    loadbalancer_pb2,
    network_pb2,
    node_pb2,
    operation_pb2,
    placementgroup_pb2,
    port_pb2,
    project_pb2,
    reach_pb2,
    router_pb2,
    securitygroup_pb2,
    subnet_pb2,
    system_pb2,
    whatif_pb2,
)
from cumulet.wire_errors import to_status

MESSAGE_BYTES_MAX: Final = 4 * 2**20  # an instance with full user-data has 20 KiB; image chunks have 1 MiB
CANCELLED: Final = "CANCELLED"  # the code of a call that neither returned nor was refused
STREAMS_MAX: Final = 2_000  # per connection; an agent needs one and its consoles
PROTO_FILES: Final = (
    agent_pb2,
    event_pb2,
    externalnetwork_pb2,
    flavor_pb2,
    floatingip_pb2,
    image_pb2,
    instance_pb2,
    keypair_pb2,
    loadbalancer_pb2,
    network_pb2,
    node_pb2,
    operation_pb2,
    placementgroup_pb2,
    port_pb2,
    project_pb2,
    reach_pb2,
    router_pb2,
    securitygroup_pb2,
    subnet_pb2,
    system_pb2,
    whatif_pb2,
)

log = structlog.get_logger(__name__)


class BadListenAddressError(Exception):
    """The address is not one that an API without TLS may listen on; `str()` says what to do."""


class MissingHandlerError(Exception):
    """A method of the protos has no handler."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """Handlers by full method name. Raw ones get the context instead of a request."""

    plain: dict[str, Callable[[Any], Any]]
    raw: dict[str, Callable[[Any], Awaitable[None]]]


def standard_rules(files: FileStore, fleet: FleetView) -> tuple[Rules, ...]:
    """The kinds with their tables and admission."""
    return (
        Rules(kinds.PROJECT, keys.PROJECTS, project.create, project.update, _by_etag(project.delete)),
        Rules(
            kinds.NODE,
            keys.NODES,
            None,
            node.update,
            lambda state, context, parts, request: node.delete(
                state, context, parts, request.etag, force=request.force
            ),
        ),
        Rules(kinds.FLAVOR, keys.FLAVORS, flavor.create, flavor.update, _by_etag(flavor.delete)),
        Rules(
            kinds.IMAGE,
            keys.IMAGES,
            lambda state, context, scope, given: image.create(state, context, scope, given, held=files.find),
            image.update,
            _by_etag(image.delete),
        ),
        Rules(kinds.KEY_PAIR, keys.KEY_PAIRS, keypair.create, keypair.update, _by_etag(keypair.delete)),
        Rules(kinds.NETWORK, keys.NETWORKS, network.create, network.update, _by_etag(network.delete)),
        Rules(kinds.SUBNET, keys.SUBNETS, subnet.create, subnet.update, _by_etag(subnet.delete)),
        Rules(kinds.PORT, keys.PORTS, update=port.update),
        Rules(kinds.ROUTER, keys.ROUTERS, router.create, router.update, _by_etag(router.delete)),
        Rules(
            kinds.EXTERNAL_NETWORK,
            keys.EXTERNAL_NETWORKS,
            externalnetwork.create,
            externalnetwork.update,
            _by_etag(externalnetwork.delete),
        ),
        Rules(
            kinds.FLOATING_IP,
            keys.FLOATING_IPS,
            floatingip.create,
            floatingip.update,
            _by_etag(floatingip.delete),
        ),
        Rules(
            kinds.LOAD_BALANCER,
            keys.LOAD_BALANCERS,
            loadbalancer.create,
            loadbalancer.update,
            _by_etag(loadbalancer.delete),
        ),
        Rules(
            kinds.SECURITY_GROUP,
            keys.SECURITY_GROUPS,
            securitygroup.create,
            securitygroup.update,
            _by_etag(securitygroup.delete),
        ),
        Rules(
            kinds.PLACEMENT_GROUP,
            keys.PLACEMENT_GROUPS,
            placementgroup.create,
            placementgroup.update,
            _by_etag(placementgroup.delete),
        ),
        Rules(
            kinds.INSTANCE,
            keys.INSTANCES,
            instance.create,
            instance.update,
            _by_etag(instance.delete),
            long_running=True,
            foretell=lambda state, given: foretell_placement(fleet, state, given),
        ),
        Rules(kinds.OPERATION, keys.OPERATIONS),
    )


def _by_etag(delete: Any) -> Any:
    return lambda state, context, parts, request: delete(state, context, parts, request.etag)


def build_handlers(controller: Controller, files: FileStore) -> Handlers:
    """All handlers of the API."""
    consoles = Consoles()
    agents = AgentMethods(controller, consoles)
    instances = InstanceMethods(controller, consoles)
    nodes, operations = NodeMethods(controller), OperationMethods(controller)
    events, image_files = EventMethods(controller), ImageFileMethods(files)
    system = SystemMethods(controller)
    snapshots = Snapshots(controller)
    whatif = WhatIfMethods(controller, snapshots)
    plain: dict[str, Callable[[Any], Any]] = {
        "InstanceService.StartInstance": instances.start,
        "InstanceService.StopInstance": instances.stop,
        "InstanceService.RebootInstance": instances.reboot,
        "InstanceService.ExplainInstance": instances.explain,
        "InstanceService.GetConsoleLog": instances.console_log,
        "InstanceService.AttachConsole": instances.attach_console,
        "NodeService.CordonNode": nodes.cordon,
        "NodeService.UncordonNode": nodes.uncordon,
        "OperationService.WaitOperation": operations.wait,
        "EventService.ListEvents": events.list,
        "EventService.WatchEvents": events.watch,
        "ImageService.UploadFile": image_files.upload,
        "AgentService.ReadFile": image_files.read,
        "SystemService.Verify": system.verify,
        "SystemService.GetCloud": system.get_cloud,
        "WhatIfService.WhatIf": whatif.what_if,
        "ReachService.ExplainReach": ReachMethods(controller).explain,
    }
    for rules in standard_rules(files, controller.fleet):
        kind = rules.kind
        methods = StandardMethods(controller, snapshots, rules)
        service = f"{kind.name}Service"
        named = {
            "get": (f"Get{kind.name}", methods.get),
            "list": (f"List{kind.plural}", methods.list_page),
            "watch": (f"Watch{kind.plural}", methods.watch),
            "create": (f"Create{kind.name}", methods.create),
            "update": (f"Update{kind.name}", methods.update),
            "delete": (f"Delete{kind.name}", methods.delete),
        }
        plain |= {f"{service}.{name}": call for verb, (name, call) in named.items() if verb in kind.verbs}
    raw: dict[str, Callable[[Any], Awaitable[None]]] = {
        "AgentService.Session": agents.session,
        "AgentService.Console": agents.console,
    }
    return Handlers(plain, raw)


class _Calls:
    """Wraps handlers: errors become statuses with details, every call is counted, faults are logged."""

    def __init__(self, controller: Controller) -> None:
        self._metrics = controller.metrics
        self._ready = controller.ready

    def _check_ready(self) -> None:
        """Raises UnavailableError before the State is fed: nothing is NotFound that was not looked for."""
        if not self._ready.is_set():
            raise UnavailableError("this controller is starting and has not read its state: try again")

    def unary(self, service: str, method: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            started = time.perf_counter()
            code = CANCELLED
            try:
                self._check_ready()
                reply = await call(request)
                code = "OK"
                return reply
            except Exception as error:
                status, code = _refusal(service, method, error)
                await context.abort_with_status(status)
            finally:
                self._metrics.rpcs.labels(service, method, code).inc()
                self._metrics.rpc_seconds.labels(service, method).observe(time.perf_counter() - started)

        return handle

    def stream(self, service: str, method: str, call: Callable[[Any], AsyncIterator[Any]]) -> Any:
        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            code = CANCELLED
            try:
                self._check_ready()
                async for reply in call(request):
                    yield reply
                code = "OK"
            except Exception as error:
                status, code = _refusal(service, method, error)
                await context.abort_with_status(status)
            finally:
                self._metrics.rpcs.labels(service, method, code).inc()

        return handle

    def raw(self, service: str, method: str, call: Callable[[Any], Awaitable[None]]) -> Any:
        async def handle(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            code = CANCELLED
            try:
                self._check_ready()
                await call(context)
                code = "OK"
            except Exception as error:
                status, code = _refusal(service, method, error)
                await context.abort_with_status(status)
            finally:
                self._metrics.rpcs.labels(service, method, code).inc()

        return handle


def _refusal(service: str, method: str, error: Exception) -> tuple[grpc.Status, str]:
    """The status that a call ends with, and its code's name."""
    trace_id = uuid.uuid4().hex
    if isinstance(error, CumuletError):
        found: CumuletError = error
    elif isinstance(error, StoreError):
        found = UnavailableError(f"etcd does not answer: {error}", hints=["cumulet doctor"])
    else:
        log.exception("a call failed", service=service, method=method, trace_id=trace_id)
        found = InternalError(f"{method} failed by a fault of the controller; its log has trace {trace_id}")
    return rpc_status.to_status(to_status(found, trace_id)), found.grpc_code


class Server:
    """The API on its sockets."""

    def __init__(self, controller: Controller, files: FileStore, listen: list[str], insecure: bool) -> None:
        for address in listen:
            check_listen_address(address, insecure)
        self._controller = controller
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # a second controller must not take half of the connections
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_concurrent_streams", STREAMS_MAX),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        self._health = health.aio.HealthServicer()
        handlers = build_handlers(controller, files)
        services = [
            service for module in PROTO_FILES for service in module.DESCRIPTOR.services_by_name.values()
        ]
        for service in services:
            self._server.add_generic_rpc_handlers((_generic(service, handlers, _Calls(controller)),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        channelz.add_channelz_servicer(self._server)
        names = [service.full_name for service in services]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        for address in listen:
            self._server.add_insecure_port(address)

    async def run(self) -> None:
        """Serve until cancelled; SERVING once the State is fed."""
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        try:
            await self._controller.ready.wait()
            await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
            await self._server.wait_for_termination()
        finally:
            await self._server.stop(grace=1.0)


def check_listen_address(address: str, insecure: bool) -> None:
    """Raises BadListenAddressError for what is neither loopback nor a Unix socket."""
    if address.startswith("unix:") or insecure:
        return
    host = address.rpartition(":")[0].strip("[]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise BadListenAddressError(
            f"--listen {address} is not loopback, and there is no TLS yet: use 127.0.0.1 or unix:/PATH. "
            "For a lab on a network that guests cannot reach, add --insecure"
        )


def _generic(service: ServiceDescriptor, handlers: Handlers, calls: _Calls) -> grpc.GenericRpcHandler:
    methods = {method.name: _method_handler(service, method, handlers, calls) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _method_handler(
    service: ServiceDescriptor, method: MethodDescriptor, handlers: Handlers, calls: _Calls
) -> grpc.RpcMethodHandler[Any, Any]:
    name = f"{service.name}.{method.name}"
    parse = message_factory.GetMessageClass(method.input_type).FromString
    codec: dict[str, Any] = {"request_deserializer": parse, "response_serializer": _serialize}
    if name in handlers.raw:
        wrapped = calls.raw(service.full_name, method.name, handlers.raw[name])
        return grpc.stream_stream_rpc_method_handler(wrapped, **codec)
    call = handlers.plain.get(name)
    if call is None:
        raise MissingHandlerError(f"{name} has no handler in controller/api/server.py")
    if method.server_streaming:
        wrapped = calls.stream(service.full_name, method.name, call)
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(wrapped, **codec)
        return grpc.unary_stream_rpc_method_handler(wrapped, **codec)
    wrapped = calls.unary(service.full_name, method.name, call)
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(wrapped, **codec)
    return grpc.unary_unary_rpc_method_handler(wrapped, **codec)


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
