"""How etcd is reached: endpoints, TLS files, channel options, and what its errors mean.

**Edge**: reads the TLS files and resolves host names; opens no connection.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from controller.store.protocol import (
    CompactedError,
    LeaseLostError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    TxnTooLargeError,
)

# A page of PAGE_KEYS objects of 10 kB is 50 MB; gRPC's own limit of 4 MiB is far below a page.
MESSAGE_BYTES_MAX: Final = 256 << 20
# Asks a member that lost its leader to end a stream instead of holding it open in silence.
HAS_LEADER: Final = (("hasleader", "true"),)

_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    # A member that lost its leader still answers TCP; taking turns gets away from it.
    ("grpc.lb_policy_name", "round_robin"),
    # Channels with equal arguments would share connections, and a big watch would delay the rest.
    ("grpc.use_local_subchannel_pool", 1),
    # etcd drops clients that ping more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Without this one gRPC waits a minute for the answer, whatever the line above says: a member
    # that hangs (SIGSTOP) got its share of the calls for as long as it hung.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # gRPC waits a second at first and two minutes at last: too long beside a 6 s lease bound.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # An HTTP proxy from the environment never leads to the store.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `cert_file` and `key_file` are the client's own, both or neither.

    `server_name` is the name that every member's certificate carries. With one endpoint it may be
    left empty, then it is that endpoint's host; gRPC checks several endpoints against one name.
    """

    ca_file: Path
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""


def channel_target(endpoints: Sequence[str]) -> str:
    """One gRPC target for all endpoints: `HOST:PORT`, `http(s)://HOST:PORT` or `unix:PATH`.

    gRPC takes either addresses of one family, or one name or one socket. Several names are
    therefore resolved here, once. Raises ValueError.
    """
    plain = [_strip_scheme(endpoint) for endpoint in endpoints]
    if not plain:
        raise ValueError("endpoints: none given; name at least one etcd member as HOST:PORT")
    if len(plain) == 1:
        return _single_target(plain[0])
    if any(endpoint.startswith("unix:") for endpoint in plain):
        raise ValueError(f"endpoints {', '.join(endpoints)}: a unix socket cannot be one of several")
    resolved = [_resolve(*_host_port(endpoint)) for endpoint in plain]
    families = {family for family, _ in resolved}
    if len(families) > 1:
        raise ValueError(f"endpoints {', '.join(endpoints)}: IPv4 and IPv6 cannot be mixed")
    return f"{families.pop()}:{','.join(address for _, address in resolved)}"


def channel_options(endpoints: Sequence[str], tls: TlsFiles | None) -> list[tuple[str, int | str]]:
    """Options for `channel_target(endpoints)`. Raises ValueError."""
    if tls is None:
        secure = [endpoint for endpoint in endpoints if endpoint.startswith("https://")]
        if secure:
            raise ValueError(f"endpoint {secure[0]}: https needs the TLS files")
        return list(_OPTIONS)
    if not tls.server_name and len(endpoints) > 1:
        raise ValueError("tls.server_name: several endpoints are checked against one name; give it")
    name = tls.server_name or _host_port(_strip_scheme(endpoints[0]))[0]
    return [*_OPTIONS, ("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]


def channel_credentials(tls: TlsFiles | None) -> grpc.ChannelCredentials | None:
    """Credentials from the files, None without TLS. Raises OSError and ValueError."""
    if tls is None:
        return None
    if (tls.cert_file is None) != (tls.key_file is None):
        raise ValueError("tls.cert_file and tls.key_file: give both or neither")
    return grpc.ssl_channel_credentials(
        root_certificates=tls.ca_file.read_bytes(),
        private_key=tls.key_file.read_bytes() if tls.key_file else None,
        certificate_chain=tls.cert_file.read_bytes() if tls.cert_file else None,
    )


def store_error(code: grpc.StatusCode, details: str, what: str, *, is_write: bool) -> StoreError:
    """The typed error for a failed call; `what` names the attempt.

    Only refusals that etcd gives before it proposes a write are taken for "nothing happened".
    Source: etcd release-3.4, etcdserver/api/v3rpc/rpctypes/error.go.
    """
    text = f"{what}: {details or code.name}"
    refusals: tuple[tuple[str, type[StoreError]], ...] = (
        ("database space exceeded", StoreFullError),
        ("request is too large", TxnTooLargeError),
        ("too many operations", TxnTooLargeError),
        ("duplicate key given", TxnTooLargeError),
        ("lease not found", LeaseLostError),
        ("too many requests", StoreUnavailableError),
    )
    if "has been compacted" in details:
        return CompactedError(0)
    for phrase, error in refusals:
        if phrase in details:
            return error(text)
    if code in _REFUSED_CODES:
        return StoreError(text)
    return OutcomeUnknownError(text) if is_write else StoreUnavailableError(text)


# etcd answers with these before it changes anything. All else (UNAVAILABLE, DEADLINE_EXCEEDED,
# CANCELLED, UNKNOWN, INTERNAL, ...) may come after a write was proposed.
_REFUSED_CODES: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def _strip_scheme(endpoint: str) -> str:
    return endpoint.removeprefix("http://").removeprefix("https://").rstrip("/")


def _single_target(endpoint: str) -> str:
    if endpoint.startswith("unix:"):
        return endpoint
    host, port = _host_port(endpoint)
    address = _literal(host, port)
    return ":".join(address) if address else f"dns:///{host}:{port}"


def _host_port(endpoint: str) -> tuple[str, int]:
    if endpoint.startswith("unix:"):
        return "localhost", 0
    host, colon, port = endpoint.rpartition(":")
    if not (colon and host and port.isdecimal()):
        raise ValueError(f"endpoint {endpoint!r}: write HOST:PORT, [IPV6]:PORT or unix:PATH")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _literal(host: str, port: int) -> tuple[str, str] | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return ("ipv4", f"{host}:{port}") if address.version == 4 else ("ipv6", f"[{host}]:{port}")


def _resolve(host: str, port: int) -> tuple[str, str]:
    literal = _literal(host, port)
    if literal:
        return literal
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as err:
        raise ValueError(f"endpoint {host}:{port}: the host name does not resolve: {err}") from err
    addresses = [literal for entry in found if (literal := _literal(str(entry[4][0]), port))]
    return min(addresses)  # "ipv4" before "ipv6"
