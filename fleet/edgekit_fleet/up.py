"""`edgekit-fleet up`: broker, worker, rollout engine, API, dashboard and device listener in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit.codec import to_json
from edgekit.errors import SystemFault
from edgekit.files import write_bytes
from edgekit_fleet import broker as brokers
from edgekit_fleet import config, devices, server, tls
from edgekit_fleet.api.app import admin_app, device_app
from edgekit_fleet.auth import Gatekeeper
from edgekit_fleet.config import FleetInfo, Keys, Ports, State
from edgekit_fleet.db import Database
from edgekit_fleet.enroll import Address
from edgekit_fleet.fleet import Fleet, make_engine
from edgekit_fleet.releases import remove_leftovers
from edgekit_fleet.ticker import Ticker
from edgekit_fleet.worker import Worker, WorkerOptions

log = logging.getLogger(__name__)

WORKER_READY_S = 20.0


@dataclass(frozen=True)
class UpOptions:
    state: State
    host: str
    ports: Ports
    public_host: str = ""
    """Name or address under which devices reach us; "" for `host`, or this machine's name."""
    url: str = ""
    """Database URL; "" for STATE/fleet.db."""
    trust: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Listeners:
    admin: socket.socket
    device: socket.socket
    ports: Ports


def run(options: UpOptions, on_ready: Callable[[FleetInfo], None]) -> None:
    """Until SIGTERM or SIGINT. Raises SystemFault when something it needs is missing; then nothing stays."""
    keys = config.init(options.state)
    with options.state.locked(), contextlib.ExitStack() as stack:
        options.state.info.unlink(missing_ok=True)
        remove_leftovers(options.state)
        brokers.find_programs()
        for path in options.trust:
            config.trust_file(options.state, path)
        db = Database(options.url or f"sqlite:///{options.state.database}")
        stack.callback(db.close)
        db.create()
        listeners = stack.enter_context(_bound(options))
        fleet = _assemble(options, keys, db, listeners.ports)
        fleet.broker.start()
        stack.callback(fleet.broker.stop)
        config.remember_ports(options.state, listeners.ports)
        fleet.worker.start()
        stack.callback(fleet.worker.stop)
        if not fleet.worker.wait_connected(WORKER_READY_S):
            raise SystemFault("the fleet cannot connect to its own broker", "see broker/mosquitto.log")
        ticker = Ticker(fleet)
        ticker.start()
        stack.callback(ticker.stop)
        stack.callback(fleet.stopping.set)
        stack.callback(options.state.info.unlink, missing_ok=True)
        asyncio.run(_serve(fleet, listeners, lambda: _announce(fleet, on_ready)))


def _assemble(options: UpOptions, keys: Keys, db: Database, ports: Ports) -> Fleet:
    public = options.public_host or _public_name(options.host)
    address = Address(
        url=f"https://{_bracketed(public)}:{ports.admin}",
        device_url=f"https://{_bracketed(public)}:{ports.device}",
        broker_host=public,
        broker_port=ports.mqtt,
    )
    names = [public, brokers.local(options.host), "localhost", "127.0.0.1", "::1", socket.gethostname()]
    names = [name for name in names if name]
    files = tls.write_files(options.state, keys, names, devices.revocation_list(db, keys))
    broker = brokers.Broker(
        brokers.BrokerOptions(
            host=options.host,
            port=ports.mqtt,
            folder=options.state.broker.resolve(),
            ca=files.ca.resolve(),
            certificate=files.server_certificate.resolve(),
            key=files.server_key.resolve(),
            crl=files.crl.resolve(),
        )
    )
    host, port = broker.connect_address
    worker = Worker(WorkerOptions(host, port, files.ca, files.worker_certificate, files.worker_key), db)
    return Fleet(
        state=options.state,
        keys=keys,
        db=db,
        gate=Gatekeeper(keys.admin_token, keys.cookie),
        engine=make_engine(db, keys),
        address=address,
        files=files,
        device_tls=tls.device_context(files),
        broker=broker,
        worker=worker,
    )


@contextlib.contextmanager
def _bound(options: UpOptions) -> Iterator[_Listeners]:
    """Sockets of both HTTPS listeners, and a port for the broker; a port that was given or used before
    must be free, because enrolled devices know it."""
    wanted = config.remembered_ports(options.state, options.ports)
    with contextlib.ExitStack() as stack:
        admin = stack.enter_context(brokers.bind(options.host, wanted.admin))
        device = stack.enter_context(brokers.bind(options.host, wanted.device))
        server.listen(admin, "the API")
        server.listen(device, "devices")
        mqtt = wanted.mqtt
        if mqtt == 0:
            with brokers.bind(options.host, 0) as probe:
                mqtt = int(probe.getsockname()[1])
        ports = Ports(int(admin.getsockname()[1]), int(device.getsockname()[1]), mqtt)
        yield _Listeners(admin, device, ports)


async def _serve(fleet: Fleet, listeners: _Listeners, ready: Callable[[], None]) -> None:
    servers = [
        server.make(admin_app(fleet, listeners.ports.admin), tls.admin_context(fleet.files)),
        server.make(device_app(fleet), fleet.device_tls),
    ]
    sockets = [listeners.admin, listeners.device]

    def stop() -> None:
        fleet.stopping.set()
        for one in servers:
            one.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    tasks = [
        asyncio.create_task(one.serve(sockets=[bound])) for one, bound in zip(servers, sockets, strict=True)
    ]
    try:
        await server.started(servers, tasks)
        ready()
        await asyncio.gather(*tasks)
    finally:
        stop()
        await asyncio.gather(*tasks, return_exceptions=True)


def _announce(fleet: Fleet, on_ready: Callable[[FleetInfo], None]) -> None:
    info = FleetInfo(
        pid=os.getpid(),
        url=fleet.address.url,
        device_url=fleet.address.device_url,
        mqtt_host=fleet.address.broker_host,
        mqtt_port=fleet.address.broker_port,
        dashboard=f"{fleet.address.url}/login?code={fleet.gate.new_code()}",
        ca_pem=str(fleet.state.ca_pem.resolve()),
        admin_token=str(fleet.state.admin_token.resolve()),
    )
    write_bytes(fleet.state.info, to_json(info), mode=0o600)
    on_ready(info)


def _public_name(host: str) -> str:
    return socket.gethostname() if brokers.local(host) != host else host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
