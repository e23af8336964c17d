"""The process `cumulet-controller`: composition of store, controller and server.

**Edge**: command line, signals, sockets, files. The only module that imports etcd's adapter.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
import signal
import sys
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop
from prometheus_client import start_http_server

from controller.api.server import BadListenAddressError, Server
from controller.controller import Controller
from controller.files import FileStore
from controller.journal import FileJournal
from controller.metrics import Metrics, StateCollector
from controller.reconcile.election import LeadershipLostError
from controller.store.etcd import EtcdStore
from controller.store.etcd_channel import TlsFiles
from controller.store.lease import Keeper, LeaseKeeper
from cumulet.clock import SystemClock
from scheduler.policy import BY_NAME, PACK, policy_named

OPTIONS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    (
        "--etcd",
        "an etcd endpoint; repeatable",
        {"action": "append", "required": True, "metavar": "HOST:PORT"},
    ),
    ("--etcd-ca", "CA of etcd's certificates: TLS to etcd", {"type": Path, "metavar": "FILE"}),
    ("--etcd-cert", "our certificate for etcd", {"type": Path, "metavar": "FILE"}),
    ("--etcd-key", "our key for etcd", {"type": Path, "metavar": "FILE"}),
    (
        "--listen",
        "unix:/PATH or HOST:PORT; repeatable",
        {"action": "append", "required": True, "metavar": "ADDRESS"},
    ),
    (
        "--advertise",
        "where agents and clients reach this replica (default: the first --listen)",
        {"metavar": "ADDRESS"},
    ),
    ("--data-dir", "journal and image files", {"type": Path, "required": True, "metavar": "DIR"}),
    ("--metrics-address", "Prometheus metrics", {"default": "127.0.0.1:7441", "metavar": "HOST:PORT"}),
    (
        "--placement-policy",
        f"how nodes are chosen: {', '.join(BY_NAME)} (default: {PACK.name}); the same on every replica",
        {"default": PACK.name, "choices": tuple(BY_NAME), "metavar": "NAME"},
    ),
    ("--insecure", "allow --listen beyond loopback, without TLS (labs only)", {"action": "store_true"}),
)

# Python's collector walks everything that lives, again and again, as the State grows: a quarter of the CPU of
# a busy leader, in pauses of 150 ms. What the State holds has no cycles; what has (tasks, errors) dies young.
# So: 1 ms after 5,000 more objects, 3 ms after 25,000, and the whole heap after five million, not 70,000.
GC_THRESHOLDS = (5_000, 5, 200)
GC_FIRST = 200_000  # while everything is listed, of which hardly anything goes again

log = structlog.get_logger(__name__)
EXIT_USAGE = 2
EXIT_LOST = 3  # leadership was lost: the supervisor starts a fresh process


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cumulet-controller", description="Cumulet's controller")
    for name, help_text, more in OPTIONS:
        parser.add_argument(name, help=help_text, **more)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_arguments()
    _configure_logging()
    try:
        code = uvloop.run(_run(options))
    except BadListenAddressError as error:
        print(f"cumulet-controller: {error}", file=sys.stderr)
        code = EXIT_USAGE
    except (RuntimeError, OSError) as error:  # the address is in use, or the socket's folder is missing
        print(f"cumulet-controller: cannot listen: {error}", file=sys.stderr)
        code = EXIT_USAGE
    sys.exit(code)


async def _run(options: argparse.Namespace) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    metrics = Metrics()
    tls = _tls(options)
    store = EtcdStore(options.etcd, tls=tls, on_txn=metrics.note_txn)
    clock = SystemClock()

    def keeper(lease_id: int, granted_at: float) -> Keeper:
        return LeaseKeeper(options.etcd, lease_id, granted_at, tls=tls, clock=clock.monotonic)

    journal_path = options.data_dir / "journal.jsonl"
    controller = Controller(
        store,
        keeper,
        FileJournal(journal_path),
        clock,
        random.Random(),
        options.advertise or options.listen[0],
        metrics,
        policy_named(options.placement_policy),
    )
    controller.events.load(journal_path)
    server = Server(controller, FileStore(options.data_dir / "files"), options.listen, options.insecure)
    metrics.registry.register(StateCollector(controller.state))
    host, _, port = options.metrics_address.rpartition(":")
    start_http_server(int(port), host, registry=metrics.registry)
    code = 0
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(controller.run()), group.create_task(server.run())]
            tasks.append(group.create_task(_settle_collector(controller)))
            await stopping.wait()
            log.info("stopping")
            for task in tasks:
                task.cancel()
    except* LeadershipLostError as lost:
        log.error("leadership was lost, starting afresh", why=str(lost.exceptions[0]))
        code = EXIT_LOST
    finally:
        await store.close()
    return code


async def _settle_collector(controller: Controller) -> None:
    """What was listed at the start lives on: the collector need not look at it, now or later."""
    gc.set_threshold(GC_FIRST)
    await controller.ready.wait()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _tls(options: argparse.Namespace) -> TlsFiles | None:
    if options.etcd_ca is None:
        return None
    return TlsFiles(options.etcd_ca, options.etcd_cert, options.etcd_key)


def _configure_logging() -> None:
    """JSON lines on stderr, for people on a terminal."""
    render = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


if __name__ == "__main__":
    main()
