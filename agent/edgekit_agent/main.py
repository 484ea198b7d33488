"""The command `edgekit-agent`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

from edgekit import host
from edgekit.arguments import Parser
from edgekit.errors import EdgekitError, InputError
from edgekit_agent import config, logs, sd, token_commands
from edgekit_agent.config import ServeSection

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every deliberate error becomes one line and a hint, exit code 2."""
    try:
        args = parser().parse_args(argv)
        _log(args, config.LogSection())
        command: Callable[[argparse.Namespace], int] = args.run
        return command(args)
    except EdgekitError as exc:
        sys.stderr.write(f"error: {exc.message}\n")
        if exc.hint:
            sys.stderr.write(f"  hint: {exc.hint}\n")
        return exc.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    root = Parser(
        prog="edgekit-agent", description="Serves models on a device: from a fleet, or bundles alone."
    )
    root.add_argument("--config", type=Path, metavar="FILE", help="run under a fleet with this agent.toml")
    root.add_argument("--verbose", action="store_true", help="log more")
    root.add_argument("--log", choices=get_args(logs.Format), help="how the log looks (default: text)")
    root.add_argument(
        "--log-requests", choices=get_args(logs.Requests), help="requests that are logged (default: none)"
    )
    root.set_defaults(run=_run)
    commands = root.add_subparsers(metavar="COMMAND")
    _serve_command(commands.add_parser("serve", help="serve bundles, without a fleet"))
    _enroll_command(commands.add_parser("enroll", help="join a fleet: make keys, get a certificate"))
    token_commands.add(commands.add_parser("token", help="who may ask this agent over the network"))
    status = commands.add_parser("status", help="what the journal says, as JSON")
    status.add_argument("--state", type=Path, required=True, metavar="DIR", help="state folder")
    status.set_defaults(run=_status)
    _top_command(commands.add_parser("top", help="what the endpoint does, live"))
    _unit_command(commands.add_parser("systemd-unit", help="print a unit for systemd"))
    return root


def _top_command(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--url", default=f"http://127.0.0.1:{config.DEFAULT_PORT}",
        help=f"the agent's address (default: http://127.0.0.1:{config.DEFAULT_PORT})",
    )  # fmt: skip
    command.add_argument("--unix", type=Path, metavar="PATH", help="its Unix socket instead")
    command.add_argument("--state", type=Path, metavar="DIR", help="find it by its state folder")
    command.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds (default: 1)")
    command.add_argument("--once", action="store_true", help="one interval, then end")
    command.add_argument("--json", action="store_true", help="one JSON object per interval")
    command.set_defaults(run=_top)


def _unit_command(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--state", type=Path, default=Path("/var/lib/edgekit"), metavar="DIR",
        help="state folder (default: /var/lib/edgekit)",
    )  # fmt: skip
    command.add_argument("--user", default="edgekit", help="user that owns it (default: edgekit)")
    command.add_argument(
        "--device", type=Path, action="append", default=[], metavar="PATH",
        help="a device that the engine needs, e.g. /dev/nvidia0; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--socket", metavar="ADDRESS",
        help="print the socket unit instead: systemd listens there, e.g. on 127.0.0.1:8000",
    )  # fmt: skip
    command.set_defaults(run=_unit)


def _serve_command(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "bundles", type=Path, nargs="+", metavar="BUNDLE",
        help="an .edgekit file; of several each answers under its own name",
    )  # fmt: skip
    command.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="private key of a recipient (default: the key ring's recipient.pem)",
    )
    command.add_argument(
        "--trust", type=Path, action="append", default=[], metavar="FILE",
        help="public key of a trusted builder; may be repeated (default: the key ring's builder.pub)",
    )  # fmt: skip
    command.add_argument("--profile", default="auto", help="device profile (default: auto)")
    command.add_argument(
        "--memory-mib", type=float, default=0.0, metavar="N",
        help="most memory for serving (default: what the bundles declare, together); of several models the"
        " one that nobody has asked for longest leaves it first",
    )  # fmt: skip
    _emulated_option(command)
    _listen_options(command)
    command.set_defaults(run=_serve)


def _enroll_command(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--token", required=True, help="what `edgekit fleet enroll` printed; - reads it from stdin"
    )
    command.add_argument("--fleet", metavar="URL", help="address of the fleet, when not the token's")
    command.add_argument("--state", type=Path, required=True, metavar="DIR", help="state folder to make")
    command.add_argument("--profile", default="auto", help="device profile (default: auto)")
    command.add_argument(
        "--device", default="", metavar="NAME", help="device id, when the token leaves it open"
    )
    command.add_argument(
        "--telemetry-s", type=float, default=10.0, metavar="S", help="seconds per telemetry window"
    )
    _emulated_option(command)
    _listen_options(command)
    command.set_defaults(run=_enroll)


def _emulated_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--emulated", action="store_true",
        help="let this machine stand for the profile's hardware: hardware checks are skipped",
    )  # fmt: skip


def _listen_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    command.add_argument("--port", type=int, default=config.DEFAULT_PORT, help="TCP port; 0: any free one")
    command.add_argument(
        "--also-port", type=int, action="append", default=[], metavar="PORT",
        help="another TCP port, e.g. 8001 (Triton's gRPC) or 8500 (TensorFlow Serving's); may be repeated",
    )  # fmt: skip
    command.add_argument("--unix", type=Path, metavar="PATH", help="listen on this Unix socket too")
    guard = command.add_argument_group(
        "off loopback", "who may ask over the network, and that nobody listens in"
    )
    guard.add_argument("--tls-cert", type=Path, metavar="FILE", help="the agent's certificate, PEM")
    guard.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    guard.add_argument(
        "--client-ca", type=Path, metavar="FILE", help="clients must show a certificate that this one signed"
    )
    guard.add_argument(
        "--tokens", type=Path, metavar="FILE", help="clients must show a token: edgekit-agent token create"
    )
    guard.add_argument(
        "--allow-plaintext", action="store_true", help="no TLS, although anybody may listen in"
    )
    guard.add_argument("--allow-anonymous", action="store_true", help="no proof of who asks")


def _serve_section(args: argparse.Namespace) -> ServeSection:
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: not a port", "0 to 65535")
    others = tuple(dict.fromkeys(args.also_port))
    odd = [port for port in others if not 0 < port <= 65535 or port == args.port]
    if odd:
        raise InputError(f"--also-port {odd[0]}: not a port of its own", "1 to 65535, not the one of --port")
    if len(others) >= config.MAX_PORTS:
        raise InputError(f"--also-port: {len(others)} ports", f"give {config.MAX_PORTS - 1} at most")
    if bool(args.tls_cert) != bool(args.tls_key) or (args.client_ca and not args.tls_cert):
        raise InputError("TLS needs --tls-cert and --tls-key", "--client-ca needs both, too")
    return ServeSection(
        host=args.host,
        port=args.port,
        ports=others,
        unix=_absolute(args.unix),
        tls_cert=_absolute(args.tls_cert),
        tls_key=_absolute(args.tls_key),
        client_ca=_absolute(args.client_ca),
        tokens=_absolute(args.tokens),
        allow_plaintext=args.allow_plaintext,
        allow_anonymous=args.allow_anonymous,
    )


def _absolute(path: Path | None) -> str:
    return str(path.absolute()) if path else ""


def _log(args: argparse.Namespace, section: config.LogSection) -> config.LogSection:
    """Log as the command line says, else as the configuration does."""
    chosen = config.LogSection(args.log or section.format, args.log_requests or section.requests)
    logs.setup(chosen.format, logging.DEBUG if args.verbose else logging.INFO, "agent")
    return chosen


def _run(args: argparse.Namespace) -> int:
    if args.config is None:
        raise InputError("nothing to do", "give --config FILE, or a command; see --help")
    # Each command imports what it needs: `enroll` has no use for an engine, nor `serve` for MQTT.
    from edgekit_agent.agent import Agent

    settings = config.load(args.config)
    settings = dataclasses.replace(settings, log=_log(args, settings.log))
    host.keep_private()
    agent = Agent(settings)
    with _signals() as stop:
        try:
            agent.start()
            with sd.service(agent.status, agent.healthy):
                stop()
        finally:
            agent.stop()
    return 0


def _serve(args: argparse.Namespace) -> int:
    from edgekit_agent.alone import serve

    host.keep_private()
    with _signals() as stop:
        serve(
            args.bundles,
            key=args.key,
            trust=args.trust,
            profile=args.profile,
            emulated=args.emulated,
            section=dataclasses.replace(_serve_section(args), memory_mib=_memory_mib(args.memory_mib)),
            log_section=_log(args, config.LogSection()),
            until=stop,
        )
    return 0


def _memory_mib(given: float) -> float:
    if not 0 <= given < math.inf:
        raise InputError(f"--memory-mib {given:g}: not a size", "give MiB, or 0 for what the bundles declare")
    return given


def _enroll(args: argparse.Namespace) -> int:
    from edgekit_agent import enroll

    text = sys.stdin.readline() if args.token == "-" else args.token  # noqa: S105 - not a password
    token = enroll.parse_token(text, args.fleet)
    made = enroll.enroll(
        token,
        args.state.absolute(),
        device=args.device,
        profile_name=args.profile,
        emulated=args.emulated,
        serve=_serve_section(args),
        telemetry=config.TelemetrySection(interval_s=args.telemetry_s),
    )
    sys.stdout.write(json.dumps({"config": str(made), "device": config.load(made).device.id}) + "\n")
    return 0


def _status(args: argparse.Namespace) -> int:
    from edgekit_agent.status import status

    sys.stdout.write(json.dumps(status(args.state), indent=2) + "\n")
    return 0


def _top(args: argparse.Namespace) -> int:
    from edgekit_agent.top import top

    top(
        url=args.url, unix=args.unix, state=args.state,
        interval_s=args.interval, once=args.once, as_json=args.json,
    )  # fmt: skip
    return 0


def _unit(args: argparse.Namespace) -> int:
    from edgekit_agent import units

    found = units.sockets(args.socket) if args.socket else units.service(args.state, args.user, args.device)
    sys.stdout.write(found)
    return 0


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Catch SIGTERM and SIGINT from now on; what it gives waits for one of them."""
    wanted = {signal.SIGTERM, signal.SIGINT}

    def interrupt(_number: int, _frame: object) -> None:
        raise SystemExit(0)

    # Until the wait begins a signal ends the start-up, through every `finally`.
    before = {one: signal.signal(one, interrupt) for one in wanted}
    # Its number lies here as well: Python swallows what a handler raises inside a destructor, and the wait
    # would last for ever.
    arrived, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def wait() -> None:
        with suppress(SystemExit):
            while wanted.isdisjoint(os.read(arrived, 64)):
                pass
        # Another one must not disturb the end.
        for one in wanted:
            before[one] = signal.SIG_IGN
            signal.signal(one, signal.SIG_IGN)

    try:
        yield wait
    finally:
        signal.set_wakeup_fd(-1)
        os.close(arrived)
        os.close(wakeup)
        for one, handler in before.items():
            signal.signal(one, handler)


if __name__ == "__main__":
    sys.exit(main())
