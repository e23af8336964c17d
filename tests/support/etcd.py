"""A real etcd as a child process, alone or as a cluster, for tests and benchmarks.

**Edge**: starts, signals and reaps processes of its own, on free loopback ports and in a data
directory of its own. The children die with this process, however it ends.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

READY_S: Final = 30.0  # half a second on an idle machine; a loaded one takes its time
# Below the kernel's ephemeral range, so that no outgoing connection takes a stopped member's port.
PORTS: Final = range(20_000, 32_000)
# The kernel ends a child when the *thread* that made it ends: this one lives as long as we do.
_SPAWNER: Final = ThreadPoolExecutor(1, "etcd-spawner")


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files for the client port. With `client_ca` clients must show a certificate of it."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """Where one member listens. `metrics` is plain HTTP also when clients use TLS."""

    name: str
    client_port: int
    peer_port: int
    metrics_port: int

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"


class EtcdServer:
    """One etcd process. `start` after `stop` or `kill` uses the same ports and data again."""

    def __init__(
        self,
        *,
        tls: ServerTls | None = None,
        cluster: Sequence[Member] = (),
        member: Member | None = None,
        data_dir: Path | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        self.member = member or plan_member("default")
        self._cluster = tuple(cluster) or (self.member,)
        self._tls = tls
        self._extra_args = tuple(extra_args)
        self._own_dir = None if data_dir else Path(tempfile.mkdtemp(prefix="store-etcd-"))
        self._data_dir = data_dir or self._own_dir or Path()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """HOST:PORT of the client port."""
        return f"127.0.0.1:{self.member.client_port}"

    @property
    def metrics_url(self) -> str:
        """Serves /metrics and /health."""
        return f"http://127.0.0.1:{self.member.metrics_port}"

    @property
    def log_file(self) -> Path:
        return self._data_dir / "etcd.log"

    @property
    def pid(self) -> int:
        return self._running().pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Start and wait until it answers as healthy."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start without waiting; members of a cluster become ready together only."""
        if self._process is not None:
            raise RuntimeError(f"etcd {self.member.name} runs already")
        etcd = shutil.which("etcd")
        if etcd is None:
            raise RuntimeError("etcd is missing: apt-get install etcd-server")
        self._process = _SPAWNER.submit(self._spawn, etcd).result()

    def _spawn(self, etcd: str) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", etcd, *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        """Raises RuntimeError with the log's end when it exits or takes too long."""
        deadline = time.monotonic() + READY_S
        while not self.healthy():
            if self._running().poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd {self.member.name} is not healthy:\n{self._log_end()}")
            time.sleep(0.02)  # between two questions, not in place of a condition

    def healthy(self) -> bool:
        """Whether it has a leader and can commit, as etcd itself says."""
        try:
            with urllib.request.urlopen(f"{self.metrics_url}/health", timeout=2) as answer:
                return bool(json.load(answer)["health"] == "true")
        except (OSError, ValueError):
            return False

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        values = [line.rsplit(" ", 1) for line in lines if line.startswith(name)]
        return sum(float(value) for series, value in values if series.partition("{")[0] == name)

    def buckets(self, name: str) -> dict[str, float]:
        """A histogram without labels: each bucket's upper bound and its cumulative count, in order."""
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.startswith(f"{name}_bucket")]
        return {line.split('le="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in found}

    def is_leader(self) -> bool:
        return self.metric("etcd_server_is_leader") == 1

    def stop(self) -> None:
        """Ask it to end (SIGTERM) and wait for that."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, from when this returns."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)  # its threads stop a little later

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill it if it runs, and remove its own data directory."""
        if self._process is not None:
            self.kill()
        if self._own_dir:
            shutil.rmtree(self._own_dir, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process = self._running()
        process.send_signal(how)
        process.wait(timeout=READY_S)
        self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"etcd {self.member.name} does not run")
        return self._process

    def _log_end(self) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-20:])

    def _arguments(self) -> list[str]:
        client_url = f"{'https' if self._tls else 'http'}://{self.endpoint}"
        peers = ",".join(f"{member.name}={member.peer_url}" for member in self._cluster)
        return [
            f"--name={self.member.name}",
            f"--data-dir={self._data_dir / 'data'}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={self.member.peer_url}",
            f"--initial-advertise-peer-urls={self.member.peer_url}",
            f"--initial-cluster={peers}",
            f"--listen-metrics-urls={self.metrics_url}",
            *self._tls_arguments(),
            *self._extra_args,
        ]

    def _tls_arguments(self) -> list[str]:
        if self._tls is None:
            return []
        arguments = [f"--cert-file={self._tls.cert}", f"--key-file={self._tls.key}"]
        if self._tls.client_ca:
            arguments += ["--client-cert-auth", f"--trusted-ca-file={self._tls.client_ca}"]
        return arguments


class EtcdCluster:
    """Several members on one machine; each can be stopped, killed and paused on its own."""

    def __init__(self, members: Sequence[EtcdServer]) -> None:
        self.members = tuple(members)

    @property
    def endpoints(self) -> list[str]:
        return [server.endpoint for server in self.members]

    def leader(self) -> EtcdServer:
        """Waits for one. Raises RuntimeError when there is none in time."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            for server in self.members:
                if server.healthy() and server.is_leader():
                    return server
            time.sleep(0.05)  # between two questions
        raise RuntimeError("the etcd cluster has no leader")


@contextmanager
def etcd_cluster(size: int = 3, *, extra_args: Sequence[str] = ()) -> Iterator[EtcdCluster]:
    """A healthy cluster, removed at the end."""
    plans = [plan_member(f"m{number}") for number in range(size)]
    with ExitStack() as stack:
        servers = [EtcdServer(member=plan, cluster=plans, extra_args=extra_args) for plan in plans]
        for server in servers:
            stack.callback(server.close)
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready()
        yield EtcdCluster(servers)


def plan_member(name: str) -> Member:
    """A member on three free ports."""
    return Member(name, *(_free_port() for _ in range(3)))


_taken: set[int] = set()


def _free_port() -> int:
    """A port that nobody listens on and that this process has not planned for another member."""
    for port in random.SystemRandom().sample(PORTS, k=200):
        with socket.socket() as probe:
            if port not in _taken and probe.connect_ex(("127.0.0.1", port)) != 0:
                _taken.add(port)
                return port
    raise RuntimeError(f"no free port in {PORTS}")
