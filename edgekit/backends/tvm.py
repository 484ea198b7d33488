"""TVM: the model compiled to machine code for one kind of processor, in fp32.

Two of a target's options are for the compiler and not for the engine on the device:
    cpu      str   LLVM's name of the processor, a key of CPUS; default x86-64-v2
    trials   int   MetaSchedule measurements for the tuned recipe; default 128, 0: no tuned recipe

Tuning tries schedules on this machine (Shao et al. 2022, arXiv:2205.13603). What it learns is kept
beside the tool environments, by content, so that a second build compiles the same code without tuning.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgekit import codec, toolenv
from edgekit.backends._base import Backend, Calibration, Recipe, SourceModel, Value
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError
from edgekit.files import write_bytes
from edgekit.profile import CalibrationPolicy, Target

_NAME = "tvm"
_ENV = "tvm"
_RUNTIME_ENVS = {"aarch64": "tvm-aarch64"}
"""Where the runtime library of a foreign architecture comes from; the host's own is in the compiler's."""
_TOOLS = ("apache-tvm", "apache-tvm-ffi", "ziglang")
_DEFAULT_CPU = "x86-64-v2"
_DEFAULT_TRIALS = 128
_MAX_TRIALS = 1024
_TIMEOUT_S = 870.0  # a build job has 900
_DATABASE = ("workload.json", "records.json")
CPUS = {
    **dict.fromkeys(
        (
            "x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "haswell", "skylake", "skylake-avx512",
            "cascadelake", "icelake-server", "sapphirerapids", "alderlake", "tremont", "gracemont",
            "znver2", "znver3", "znver4", "znver5",
        ),
        "x86_64",
    ),
    **dict.fromkeys(
        (
            "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72", "cortex-a76", "cortex-a78",
            "cortex-a78ae", "neoverse-n1", "neoverse-n2", "neoverse-v1", "neoverse-v2",
        ),
        "aarch64",
    ),
}  # fmt: skip
"""LLVM's processor names to architectures."""


class Engine:
    """apache-tvm with its LLVM, and ziglang for the linker it carries, in the tool environment "tvm"."""

    runtime = _NAME
    isolated = True

    def tools(self) -> dict[str, str]:
        return toolenv.versions(_ENV, _TOOLS)

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        del policy  # nothing is quantized
        if precision != "fp32":
            return
        cpu = target.options.get("cpu", _DEFAULT_CPU)
        trials = target.options.get("trials", _DEFAULT_TRIALS)
        runtime_options = {k: v for k, v in target.options.items() if k not in ("cpu", "trials")}
        yield Recipe(_NAME, precision, {"cpu": cpu, "trials": 0}, runtime_options)
        if trials:
            yield Recipe(_NAME, precision, {"cpu": cpu, "trials": trials}, runtime_options)

    def worth(self, model: SourceModel, recipe: Recipe) -> str:
        """Tuning measures on this machine, so its processor has to be of the target's architecture."""
        architecture = CPUS.get(str(recipe.options["cpu"]), "")
        here = os.uname().machine
        if not recipe.options["trials"] or architecture == here or _database(model, recipe):
            return ""
        return f"tuning for {architecture} needs an {architecture} machine, this is {here}"

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        """Raises EngineError for an unknown processor, a model TVM cannot take, or tuning that failed."""
        del calibration
        cpu, trials = _asked(recipe)
        architecture = CPUS[cpu]
        inputs = [{"name": item.name, "shape": _one_row(item)} for item in model.inputs]
        foreign = architecture != os.uname().machine
        job: dict[str, Any] = {
            "inputs": inputs,
            "target": _target(cpu),
            "trials": trials,
            "runtime": _runtime_folder(architecture) if foreign else "",
        }
        database = _database(model, recipe) if trials else {}
        if foreign and trials and not database:
            raise EngineError(f"{recipe.name}: {self.worth(model, recipe)}", "set trials = 0")
        files = {"model.onnx": model.onnx, **database}
        result, made = toolenv.run(_ENV, "tvm_compile", job, files, timeout_s=_TIMEOUT_S)
        if trials and not database:
            _keep(model, recipe, made)
        libraries = {name: made[name] for name in ("model.so", "libtvm_runtime.so")}
        return {**libraries, "io.json": codec.to_json(_description(model, cpu, result, libraries))}


def _asked(recipe: Recipe) -> tuple[str, int]:
    cpu, trials = str(recipe.options["cpu"]), recipe.options["trials"]
    if cpu not in CPUS:
        raise EngineError(f"{_NAME}: option 'cpu' cannot be {cpu!r}", f"known: {', '.join(CPUS)}")
    if not isinstance(trials, int) or not 0 <= trials <= _MAX_TRIALS:
        raise EngineError(f"{_NAME}: option 'trials' cannot be {trials!r}", f"0 to {_MAX_TRIALS}")
    return cpu, trials


def _target(cpu: str) -> dict[str, Value]:
    """TVM's description of the processor.

    The two fast-math flags let LLVM reorder sums and use fused multiply-add, without which it may not
    vectorise a reduction; NaN and infinity keep their meaning. One core: kernels run on one thread.
    """
    return {
        "kind": "llvm",
        "mtriple": f"{CPUS[cpu]}-linux-gnu",
        "mcpu": cpu,
        "num-cores": 1,
        "fast-math-reassoc": True,
        "fast-math-contract": True,
    }


def _one_row(item: TensorSpec) -> list[int]:
    if -1 in item.shape[1:]:
        raise EngineError(
            f"{_NAME}: input {item.name!r} has an open dimension besides the batch: {list(item.shape)}",
            "export it with a fixed size",
        )
    return [1 if size == -1 else size for size in item.shape]


def _runtime_folder(architecture: str) -> str:
    """TVM's package for another architecture: never run here, only its runtime library is taken."""
    if architecture not in _RUNTIME_ENVS:
        raise EngineError(f"{_NAME}: cannot compile for {architecture} on {os.uname().machine}")
    home = toolenv.ensure(_RUNTIME_ENVS[architecture]).parents[1]
    return str(next(home.glob("lib/python*/site-packages/tvm")))


def _description(
    model: SourceModel, cpu: str, result: dict[str, Any], libraries: dict[str, bytes]
) -> dict[str, Any]:
    """io.json; see `edgekit.runtimes.tvm`."""
    batched = any(item.shape[:1] == (-1,) for item in model.inputs)
    outputs = []
    for item in result["outputs"]:
        shape = item["shape"]
        if batched and shape[:1] != [1]:
            raise EngineError(f"{_NAME}: output {item['name']!r} has no batch dimension: {shape}")
        outputs.append({**item, "shape": [-1, *shape[1:]] if batched else shape})
    return {
        "format": f"edgekit-{_NAME}",
        "version": 1,
        "architecture": CPUS[cpu],
        "cpu": cpu,
        "kernels": result["kernels"],
        "inputs": [codec.to_plain(item) for item in model.inputs],
        "outputs": outputs,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in libraries.items()},
    }


def _place(model: SourceModel, recipe: Recipe) -> Path:
    """Of the database of one tuning: beside the tool environments, named by what it depends on."""
    question = [model.sha256, recipe.options, toolenv.versions(_ENV, _TOOLS)]
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32]
    return toolenv.ensure(_ENV).parents[2] / "tvm-tuning" / key


def _database(model: SourceModel, recipe: Recipe) -> dict[str, bytes]:
    """The two files of an earlier tuning; empty when there was none."""
    place = _place(model, recipe)
    if not all((place / name).is_file() for name in _DATABASE):
        return {}
    return {name: (place / name).read_bytes() for name in _DATABASE}


def _keep(model: SourceModel, recipe: Recipe, made: dict[str, bytes]) -> None:
    place = _place(model, recipe)
    place.mkdir(parents=True, exist_ok=True)
    for name in _DATABASE:
        write_bytes(place / name, made[name])


BACKEND: Backend = Engine()
