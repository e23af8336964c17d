"""What a guest tries and what a listener answers, for packet tests. Blocking: runs inside a lab's threads.

**Edge**: sockets of the calling thread's namespace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator

_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata: ..., VLAN's identifier and type
_EAR_BYTES = 1 << 24
_QUIET_S = 0.2
_LINK_ADDRESS_LENGTH = 5  # of AF_PACKET: link, protocol, type of packet, ...; an IPv6 address has four parts
_IP_MTU_DISCOVER, _DISCOVER_DO, _IPV6_DONTFRAG = 10, 2, 62
_INFORMATION_REQUEST, _OPTION_REQUEST, _DNS_SERVERS = 11, 6, 23
_SCAN_WAIT_S = 0.5  # an answer on one machine takes well below a millisecond
_ANSWER_WAIT_S = 1.0
_CARRIER_WAIT_S = 2.0  # opening a tap gives it a carrier, which the kernel notices within a second
_ASK_AGAIN_S = 0.1
_TUNSETIFF = 0x400454CA
_TAP_WITH_HEADERS = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
_HEADER_LENGTH = 10  # struct virtio_net_hdr


def send_frames(frames: Iterable[bytes], link: str = "eth0") -> None:
    """As they are, out of a link."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
        mouth.bind((link, 0))
        for frame in frames:
            mouth.send(frame)


def send_datagrams(target: str, port: int, payloads: Iterable[bytes], *, whole: bool = False) -> None:
    """`whole`: never in fragments; raises OSError (EMSGSIZE) for one that does not fit the way."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        if whole and family == socket.AF_INET:
            client.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DISCOVER_DO)
        elif whole:
            client.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
        for payload in payloads:
            client.sendto(payload, (target, port))


class Ear:
    """Datagrams to a port; without a port every frame that comes in by a link, or by any (empty).

    Hears the namespace that it is made in.
    """

    def __init__(self, port: int = 0, *, link: str = "eth0") -> None:
        if port:
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._socket.bind(("::", port))
        else:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            if link:
                self._socket.bind((link, _ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EAR_BYTES)

    def heard(self) -> list[bytes]:
        """What came in since the last call: on one machine nothing is on its way any more."""
        found = []
        while select.select([self._socket], [], [], _QUIET_S)[0]:
            data, sender = self._socket.recvfrom(1 << 16)
            if len(sender) < _LINK_ADDRESS_LENGTH or sender[2] != socket.PACKET_OUTGOING:
                found.append(data)
        return found

    def close(self) -> None:
        self._socket.close()


class TagEar:
    """VLANs of the frames that come in by a link; the kernel takes tags off before anybody hears them."""

    def __init__(self, link: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.bind((link, _ETH_P_ALL))
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)

    def heard(self, mac: str) -> set[int]:
        """Of the frames from this MAC; 0 is no tag."""
        found = set()
        while select.select([self._socket], [], [], _QUIET_S)[0]:
            data, extras, _, _ = self._socket.recvmsg(1 << 16, 256)
            if data[6:12].hex(":") == mac:
                found.add(_AUXDATA.unpack_from(extras[0][2])[-2])
        return found

    def close(self) -> None:
        self._socket.close()


def scan_tcp(target: str, ports: Iterable[int]) -> dict[int, str]:
    """Ports of which anything was heard: "open", or "refused" (a reset reaches the scanner)."""
    poll = select.epoll()
    sockets: dict[int, tuple[int, socket.socket]] = {}
    heard: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(poll.close)
        for port in ports:
            attempt = stack.enter_context(socket.socket())
            attempt.setblocking(False)
            code = attempt.connect_ex((target, port))
            if code not in (0, errno.EINPROGRESS):
                continue  # no route: nothing was sent, nothing can be heard
            sockets[attempt.fileno()] = (port, attempt)
            poll.register(attempt, select.EPOLLOUT)
        deadline = time.monotonic() + _SCAN_WAIT_S
        while sockets and (left := deadline - time.monotonic()) > 0:
            for number, _ in poll.poll(left):
                port, attempt = sockets.pop(number)
                poll.unregister(number)
                code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code in (0, errno.ECONNREFUSED):
                    heard[port] = "refused" if code else "open"
    return heard


def probe_udp(target: str, ports: Iterable[int], payload: bytes = b"anyone?") -> dict[int, str]:
    """Ports that answered ("answer") or were reported closed ("refused")."""
    poll = select.epoll()
    sockets: dict[int, tuple[int, socket.socket]] = {}
    heard: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(poll.close)
        for port in ports:
            attempt = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            attempt.setblocking(False)
            attempt.connect((target, port))
            with contextlib.suppress(ConnectionRefusedError):
                attempt.send(payload)
            sockets[attempt.fileno()] = (port, attempt)
            poll.register(attempt, select.EPOLLIN)
        deadline = time.monotonic() + _SCAN_WAIT_S
        while sockets and (left := deadline - time.monotonic()) > 0:
            for number, _ in poll.poll(left):
                port, attempt = sockets.pop(number)
                poll.unregister(number)
                try:
                    attempt.recv(4096)
                    heard[port] = "answer"
                except ConnectionRefusedError:
                    heard[port] = "refused"
    return heard


def ask_name(server: str, name: str) -> list[str]:
    """The addresses that a DNS server gives for a name, of the server's family; empty for silence too."""
    family, kind, length = (socket.AF_INET6, 28, 16) if ":" in server else (socket.AF_INET, 1, 4)
    query = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + _labels(name) + struct.pack("!HH", kind, 1)
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(_ANSWER_WAIT_S)
        client.sendto(query, (server, 53))
        try:
            answer = client.recv(4096)
        except (TimeoutError, ConnectionRefusedError):
            return []
    count: int = struct.unpack_from("!H", answer, 6)[0]
    records = answer[len(query) :]
    # dnsmasq's and our own answers: a compressed name (2), type, class, TTL, length (10), address
    starts = range(12, 12 + (12 + length) * count, 12 + length)
    return [socket.inet_ntop(family, records[at : at + length]) for at in starts]


def ask_dhcpv6(link: str = "eth0") -> list[str]:
    """DNS servers that stateless DHCPv6 gives (RFC 8415, section 18.2.6); empty for silence."""
    wanted = struct.pack("!HHH", _OPTION_REQUEST, 2, _DNS_SERVERS)
    question = struct.pack("!I", _INFORMATION_REQUEST << 24 | 7) + wanted
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.settimeout(_ANSWER_WAIT_S)
        client.bind(("::", 546))
        client.sendto(question, ("ff02::1:2", 547, 0, socket.if_nametoindex(link)))
        try:
            answer = client.recv(4096)[4:]
        except TimeoutError:
            return []
    while len(answer) > 4:
        kind, length = struct.unpack_from("!HH", answer)
        if kind == _DNS_SERVERS:
            return [
                socket.inet_ntop(socket.AF_INET6, answer[at : at + 16]) for at in range(4, 4 + length, 16)
            ]
        answer = answer[4 + length :]
    return []


def udp_conversation(target: str, port: int) -> socket.socket:
    """One flow, for `is_echoed` before and after something changes."""
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.settimeout(_ANSWER_WAIT_S)
    client.connect((target, port))
    return client


def is_echoed(client: socket.socket) -> bool:
    try:
        client.send(b"still there?")
        return client.recv(64) == b"still there?"
    except OSError:
        return False


def who_am_i(target: str, port: int, source: str = "") -> str:
    """The source address under which a `listening` peer sees this caller; empty when unreachable."""
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as client:
        client.settimeout(_ANSWER_WAIT_S)
        client.bind((source, 0))
        try:
            client.connect((target, port))
            return client.recv(64).decode()
        except OSError:
            return ""


def arp_over_tap(tap: str, mac: str, asker: bytes, asked: bytes) -> str:
    """The MAC that answers an ARP request sent through a tap; empty for silence."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", tap.encode(), _TAP_WITH_HEADERS))
        own = bytes.fromhex(mac.replace(":", ""))
        request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + own + asker + bytes(6) + asked
        asking = bytes(_HEADER_LENGTH) + b"\xff" * 6 + own + b"\x08\x06" + request
        deadline = time.monotonic() + _CARRIER_WAIT_S
        while time.monotonic() < deadline:
            os.write(device, asking)
            while select.select([device], [], [], _ASK_AGAIN_S)[0]:
                frame = os.read(device, 2048)[_HEADER_LENGTH:]
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2" and frame[28:32] == asked:
                    return frame[22:28].hex(":")
        return ""
    finally:
        os.close(device)


@contextlib.contextmanager
def listening(
    tcp_ports: Iterable[int], udp_ports: Iterable[int] = (), udp_addresses: Iterable[str] = ()
) -> Iterator[None]:
    """Answers every TCP connection with the caller's address and every datagram with itself.

    UDP by address: an answer of a wildcard socket may leave with another source than was asked.

    Sockets are made in the calling thread's namespace and served by a thread of this context.
    """
    stop_reader, stop_writer = socket.socketpair()
    with contextlib.ExitStack() as stack:
        for end in (stop_reader, stop_writer):
            stack.enter_context(end)
        servers = [stack.enter_context(_bound_to_all(port)) for port in tcp_ports]
        asked = itertools.product(udp_addresses, udp_ports)
        echoes = [stack.enter_context(_bound(socket.SOCK_DGRAM, *endpoint)) for endpoint in asked]
        for server in servers:
            server.listen(64)
        thread = threading.Thread(target=_serve, args=(stop_reader, servers, echoes))
        thread.start()
        try:
            yield
        finally:
            stop_writer.send(b"x")
            thread.join()


@contextlib.contextmanager
def answering_names(address: str, names: dict[str, str]) -> Iterator[None]:
    """A DNS server for a few names."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        thread = threading.Thread(target=_serve_names, args=(server, names))
        thread.start()
        try:
            yield
        finally:
            with socket.socket(type=socket.SOCK_DGRAM) as last:
                last.sendto(b"", server.getsockname())
            thread.join()


def _bound_to_all(port: int) -> socket.socket:
    """TCP, of both IP versions."""
    made = socket.socket(socket.AF_INET6)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("::", port))
    return made


def _bound(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    made = socket.socket(type=kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    return made


def _serve(stop: socket.socket, servers: list[socket.socket], echoes: list[socket.socket]) -> None:
    while True:
        ready, _, _ = select.select([stop, *servers, *echoes], [], [])
        if stop in ready:
            return
        for one in ready:
            if one in servers:
                connection, peer = one.accept()
                with connection:
                    connection.sendall(str(peer[0]).removeprefix("::ffff:").encode())
            else:
                data, peer = one.recvfrom(4096)
                one.sendto(data, peer)


def _serve_names(server: socket.socket, names: dict[str, str]) -> None:
    while data := server.recvfrom(4096):
        query, peer = data
        if not query:
            return
        asked = next((name for name in names if _labels(name).lower() in query.lower()), None)
        question_end = query.index(b"\0", 12) + 5
        header = query[:2] + struct.pack("!5H", 0x8180, 1, int(asked is not None), 0, 0)
        answer = header + query[12:question_end]
        if asked is not None:
            answer += struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(names[asked])
        server.sendto(answer, peer)


def _labels(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
