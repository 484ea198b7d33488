"""The whole chain on a real keyword spotter, driven through the commands a person would type.

Builds release 1.0.0 for three kinds of device, starts a fleet and six agents as real processes, rolls
the release out in phases over MQTT, then tries to ship a broken release 2.0.0: the builder's gate
refuses it; forced past the gate, the canary's golden check stops it and the fleet takes it back. All
the while every agent answers requests; none may fail.

    python examples/kws/demo.py [--keep] [--folder DIR] [--quiet] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from traffic import Traffic

HERE = Path(__file__).resolve().parent
PROFILES = ("jetson", "raspberry-pi-5", "intel-nuc")
DEVICES = [f"{profile}-{number}" for number in (1, 2) for profile in PROFILES]
LABELS = "down,go,left,no,off,on,right,stop,up,yes,silence,unknown"
DATA = HERE / "kws01_eval.npz"
AFFINE_OFFSET, AFFINE_SCALE = 83, 0.5847029089927673
PHASES = ("canary:1", "early:50%", "rest:rest")
GATE_REFUSED, ROLLED_BACK = 2, 3


class DemoFailed(Exception):
    """A step did not end as it must."""


@dataclass
class Demo:
    """The demo's folder, its child processes and what was seen; steps run in the order of `run`."""

    folder: Path
    quiet: bool
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def environment(self) -> dict[str, str]:
        """Our programs and the broker on the path, and a key ring of the demo's own."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        return {**os.environ, "PATH": path, "EDGEKIT_KEYS": str(self.folder / "keys")}

    def say(self, text: str) -> None:
        if not self.quiet:
            sys.stdout.write(f"[{time.monotonic() - self.started:6.1f} s] {text}\n")
            sys.stdout.flush()

    def call(self, *words: str | Path, expect: int = 0, show: bool = False) -> str:
        """Run one command to its end; its standard output. Fails unless it exits with `expect`."""
        command = [str(word) for word in words]
        stdout = None if show and not self.quiet else subprocess.PIPE
        done = subprocess.run(command, env=self.environment, stdout=stdout, stderr=subprocess.PIPE, text=True)
        if done.returncode != expect:
            raise DemoFailed(f"`{' '.join(command)}` exited with {done.returncode}: {done.stderr.strip()}")
        if expect and done.stderr:
            self.say("  " + done.stderr.strip().replace("\n", "\n             "))
        return done.stdout or ""

    def start(self, name: str, *words: str | Path) -> None:
        """Start a process that stays; its output goes to <folder>/<name>.log."""
        with (self.folder / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                [str(w) for w in words], env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.children.append(child)

    def stop(self) -> None:
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
        for child in reversed(self.children):
            try:
                child.wait(timeout=15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    # -- steps ---------------------------------------------------------------------------------

    def build(self, version: str, calibration: str, *, gate: bool = True, expect: int = 0) -> Path:
        """`edgekit build` for the three profiles; the bundle's path."""
        bundle = self.folder / f"kws-{version}.edgekit"
        words: list[str | Path] = ["edgekit", "build", HERE / "kws_fp32.onnx"]
        for profile in PROFILES:
            words += ["--profile", profile]
        words += ["--calibration", calibration, "--evaluate", f"{DATA}[200:1000]", "--labels", "y"]
        words += ["--affine", f"{AFFINE_SCALE},{AFFINE_OFFSET}", "--label-names", LABELS]
        words += [
            "--precision",
            "int8",
            "--objective",
            "size",
            "--name",
            "kws",
            "--version",
            version,
            "-o",
            bundle,
        ]
        words += ["--recipient", self.folder / "fleet" / "recipient.pub"]
        words += [] if gate else ["--no-gate"]
        self.call(*words, expect=expect, show=expect == 0)
        return bundle

    def fleet(self, *words: str | Path, expect: int = 0) -> str:
        return self.call("edgekit", "fleet", *words, "--state", self.folder / "fleet", expect=expect)

    def fleet_up(self) -> str:
        """Start the manager; the dashboard's address."""
        state = self.folder / "fleet"
        self.start(
            "fleet",
            "edgekit-fleet",
            "up",
            "--state",
            state,
            *(word for port in ("--port", "--device-port", "--mqtt-port") for word in (port, "0")),
        )
        self.wait_for("the fleet", lambda: (state / "fleet.json").exists())
        ready: dict[str, Any] = json.loads((state / "fleet.json").read_text())
        return str(ready["dashboard"])

    def wait_for(self, what: str, ready: Any, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            for child in self.children:
                if child.poll() is not None:
                    raise DemoFailed(
                        f"a process ended while waiting for {what}; see the logs in {self.folder}"
                    )
            if time.monotonic() > deadline:
                raise DemoFailed(f"{what} was not there after {timeout_s:.0f} s; logs in {self.folder}")
            time.sleep(0.1)

    def enroll(self, device: str) -> None:
        profile = device.rpartition("-")[0]
        token = json.loads(self.fleet("enroll", "--device", device, "--profile", profile, "--json"))["token"]
        state = self.folder / device
        self.call(
            "edgekit-agent", "enroll", "--token", token, "--state", state, "--profile", profile,
            "--device", device, "--emulated", "--telemetry-s", "1",
            "--unix", self.socket(device), "--port", "0",
        )  # fmt: skip
        self.start(device, "edgekit-agent", "--config", state / "agent.toml")

    def socket(self, device: str) -> Path:
        return self.folder / f"{device}.sock"

    def devices(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.fleet("devices", "list", "--json"))
        return found

    def rollout(self, release: str, *, expect: int) -> dict[str, Any]:
        words = ["rollout", "create", release, "--json"]
        for phase in PHASES:
            words += ["--phase", f"{phase},success=100,errors=0,soak=2"]
        created = json.loads(self.fleet(*words))
        self.call(
            "edgekit", "fleet", "watch", str(created["id"]), "--state", self.folder / "fleet",
            expect=expect, show=True,
        )  # fmt: skip
        shown: dict[str, Any] = json.loads(self.fleet("rollout", "show", str(created["id"]), "--json"))
        return shown


def run(demo: Demo) -> None:
    """Every step, in order. Raises DemoFailed at the first that does not end as it must."""
    demo.say("fleet: making its keys, starting API, dashboard, worker and MQTT broker")
    demo.call("edgekit-fleet", "init", "--state", demo.folder / "fleet")
    demo.say("release 1.0.0: building for " + ", ".join(PROFILES))
    good = demo.build("1.0.0", f"{DATA}[0:200]")
    demo.call("edgekit-fleet", "trust", "add", demo.folder / "keys" / "builder.pub",
              "--state", demo.folder / "fleet")  # fmt: skip
    demo.seen["dashboard"] = demo.fleet_up()
    demo.say(f"dashboard: {demo.seen['dashboard']}")

    demo.say(f"enrolling and starting {len(DEVICES)} agents (emulated boards: the host's CPU runs them)")
    for device in DEVICES:
        demo.enroll(device)
    demo.wait_for("all devices online", lambda: sum(d["online"] for d in demo.devices()) == len(DEVICES))

    demo.say("release 1.0.0: publishing and rolling out in phases " + " -> ".join(PHASES))
    demo.fleet("publish", good)
    demo.seen["first"] = demo.rollout("kws:1.0.0", expect=0)

    traffic = Traffic({device: demo.socket(device) for device in DEVICES}, DATA, model="kws")
    traffic.start()
    try:
        demo.say("traffic: real samples to every agent, until the end")
        zeros = demo.folder / "zeros.npz"
        np.savez(zeros, x=np.full((200, 49, 10, 1), AFFINE_OFFSET, np.int8))
        demo.say("release 2.0.0: calibrated on zeros; the gate must refuse it")
        refused = demo.build("2.0.0", str(zeros), expect=GATE_REFUSED)
        demo.seen["refused"] = not refused.exists()
        demo.say("release 2.0.0: forced past the gate with --no-gate (its certificate says so)")
        bad = demo.build("2.0.0", str(zeros), gate=False)
        demo.fleet("publish", bad)
        demo.say("release 2.0.0: rolling out; the canary must stop it")
        demo.seen["second"] = demo.rollout("kws:2.0.0", expect=ROLLED_BACK)
        time.sleep(2)
    finally:
        traffic.stop()
    demo.seen["traffic"] = traffic.results()


def verdicts(demo: Demo) -> list[tuple[str, str, bool]]:
    """What must hold at the end: (claim, seen, holds)."""
    devices = demo.devices()
    traffic = demo.seen["traffic"]
    sent = sum(result["requests"] for result in traffic.values())
    failed = sum(result["failed"] for result in traffic.values())
    right = sum(result["right"] for result in traffic.values())
    serving = sum(device["release"] == "kws:1.0.0" for device in devices)
    return [
        ("release 1.0.0 rolled out", demo.seen["first"]["state"], demo.seen["first"]["state"] == "FINISHED"),
        ("release 2.0.0 refused by the gate", f"exit code {GATE_REFUSED}, no bundle", demo.seen["refused"]),
        (
            "release 2.0.0 forced, stopped and taken back",
            demo.seen["second"]["state"],
            demo.seen["second"]["state"] == "ROLLED_BACK",
        ),
        ("devices on release 1.0.0", f"{serving} of {len(DEVICES)}", serving == len(DEVICES)),
        ("failed requests", f"{failed} of {sent}", failed == 0 and sent > 0),
        ("right answers", f"{right / max(1, sent):.3f}", right / max(1, sent) > 0.88),
    ]


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def summary(demo: Demo) -> bool:
    """Print the closing tables; whether everything holds."""
    traffic = demo.seen["traffic"]
    rows: list[tuple[str, ...]] = [
        ("device", "release", "variant", "requests", "failed", "accuracy", "p95 ms")
    ]
    for device in sorted(demo.devices(), key=lambda d: str(d["id"])):
        result = traffic[device["id"]]
        accuracy = result["right"] / max(1, result["requests"])
        figures = (f"{result['requests']}", f"{result['failed']}", f"{accuracy:.3f}")
        name = (device["id"], device["release"], device["variant"])
        rows.append((*name, *figures, f"{result['latency_p95_ms']:.2f}"))
    claims = verdicts(demo)
    demo.say(
        "summary\n\n"
        + table(rows)
        + "\n\n"
        + table([(c, s, "ok" if ok else "FAILED") for c, s, ok in claims])
    )
    return all(holds for _, _, holds in claims)


def main() -> int:
    arguments = argparse.ArgumentParser(description="The whole chain on a real keyword spotter.")
    arguments.add_argument("--keep", action="store_true", help="leave fleet and agents running until Ctrl-C")
    arguments.add_argument("--folder", type=Path, help="work here and keep it (default: a temporary folder)")
    arguments.add_argument("--quiet", action="store_true", help="say nothing but errors")
    arguments.add_argument("--json", action="store_true", help="print what was seen as JSON at the end")
    options = arguments.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="edgekit-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    demo = Demo(folder.resolve(), quiet=options.quiet or options.json)
    good = False
    for one in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with SIGINT ignored
        signal.signal(one, signal.default_int_handler)
    try:
        run(demo)
        good = summary(demo)
        if options.json:
            sys.stdout.write(json.dumps({"ok": good, **demo.seen}) + "\n")
        if options.keep:
            demo.say(f"running until Ctrl-C; dashboard: {demo.seen['dashboard']}")
            signal.pause()
    except DemoFailed as exc:
        sys.stderr.write(f"error: {exc}\n")
    except KeyboardInterrupt:
        demo.say("stopping")
    finally:
        demo.stop()
        if good and not options.folder:
            shutil.rmtree(folder, ignore_errors=True)
    if good:
        demo.say(
            f"done; the dashboard was at {demo.seen['dashboard']} (`make demo DEMO=--keep` leaves it running)"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
