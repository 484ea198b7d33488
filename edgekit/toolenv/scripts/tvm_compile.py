"""Compile ONNX with TVM into one shared library, for this machine or another.

job.json: inputs [{"name", "shape"}] (batch fixed to 1), target (a TVM target: kind, mtriple, mcpu ...),
    trials (MetaSchedule measurements in all; 0: untuned), runtime (a folder with the target's wheel of
    apache-tvm; empty: this environment's)
in/model.onnx; in/workload.json and in/records.json: what an earlier tuning learnt, optional
out/model.so, out/libtvm_runtime.so; out/workload.json and out/records.json after tuning
result.json: outputs [{"name", "datatype", "shape"}] for one row, version,
    kernels (how many compiled functions the model calls)
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

os.environ["TVM_BIND_THREADS"] = "0"  # several builds would all sit on the first core

import onnx
import tvm
from tvm import relax
from tvm.ir.utils import derived_object
from tvm.relax.frontend.onnx import from_onnx, onnx_frontend
from tvm.s_tir import meta_schedule
from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

SEED = 20260101
LIBRARY = "libtvm_runtime.so"
DATABASE = {"workload.json": "database_workload.json", "records.json": "database_tuning_record.json"}
TRIALS_PER_ROUND = 16
DATATYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
}  # fmt: skip


class Refusal(Exception):
    """The model or machine is at fault: message and hint, a line each."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.hint = hint


def compile_model(folder, job):
    model = onnx.load(folder / "in" / "model.onnx")
    refuse_unknown(model)
    target = tvm.target.Target(job["target"])
    shapes = {item["name"]: item["shape"] for item in job["inputs"]}
    module = from_onnx(model, shape_dict=shapes, keep_params_in_input=False)
    work = folder / "work"
    work.mkdir()
    with target:
        module = fused(module)
        if job["trials"]:
            learn(module, target, job["trials"], folder, work)
            module = apply(module, work)
    executable = tvm.compile(module, target=target, relax_pipeline=relax.get_pipeline("default_build"))
    out = folder / "out"
    executable.export_library(str(out / "model.so"), fcompile=link)
    runtime = Path(job["runtime"]) if job["runtime"] else Path(tvm.__file__).parent
    (out / LIBRARY).write_bytes((runtime / "lib" / LIBRARY).read_bytes())
    return {
        "outputs": outputs(model, module),
        "kernels": calls(module),
        "version": tvm.__version__,
    }


def refuse_unknown(model):
    known = onnx_frontend._get_convert_map()
    for node in model.graph.node:
        if node.op_type not in known:
            raise Refusal(
                f"TVM's importer has no operator {node.op_type} (node {node.name or node.output[0]!r})",
                "build this model for onnxruntime",
            )


def fused(module):
    """Relax operators to loops, neighbours fused: what is tuned and compiled."""
    passes = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        # Weights may then be stored in the order in which a tuned loop reads them.
        relax.transform.AttachAttrLayoutFreeBuffers(),
    ]
    return tvm.transform.Sequential(passes)(module)


def learn(module, target, trials, folder, work):
    """MetaSchedule: try schedules on this CPU, keep what they took; continues an earlier database."""
    for ours, theirs in DATABASE.items():
        if (folder / "in" / ours).exists():
            (work / theirs).write_bytes((folder / "in" / ours).read_bytes())
    if not (work / DATABASE["records.json"]).exists():
        logging.disable(logging.WARNING)
        print(f"edgekit: tvm: tuning, {trials} trials", file=sys.stderr, flush=True)
        meta_schedule.relax_integration.tune_relax(
            module,
            params={},
            target=target,
            work_dir=str(work),
            max_trials_global=trials,
            num_trials_per_iter=TRIALS_PER_ROUND,
            builder=InProcess(work),
            runner=meta_schedule.runner.LocalRunner(
                timeout_sec=10.0,
                evaluator_config=meta_schedule.runner.EvaluatorConfig(1, 3, 20, False),
            ),
            strategy=meta_schedule.search_strategy.EvolutionarySearch(population_size=128),
            seed=SEED,
        )
    if not any(ran(line) for line in (work / DATABASE["records.json"]).read_text().splitlines()):
        raise Refusal(
            f"no tuned kernel ran: this CPU is not a {job_cpu(target)}",
            "tune on the device's kind of CPU, or build with trials = 0",
        )
    for ours, theirs in DATABASE.items():
        (folder / "out" / ours).write_bytes((work / theirs).read_bytes())


@derived_object
class InProcess(meta_schedule.builder.PyBuilder):
    """Compiles trial kernels here. TVM's own builder starts processes anew for each round, and importing
    its tensor instructions there takes longer (20 s) than compiling everything."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.count = 0

    def build(self, build_inputs):
        return [self.one(item) for item in build_inputs]

    def one(self, item):
        self.count += 1
        place = self.folder / f"trial{self.count}"  # of its own: MetaSchedule removes the whole folder
        place.mkdir()
        path = str(place / "kernel.so")
        try:
            module = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(item.mod)
            tvm.tirx.build(module, target=item.target).export_library(path, fcompile=link)
        except Exception as exc:  # one schedule of many: the search goes on without it
            return meta_schedule.builder.BuilderResult(None, str(exc))
        return meta_schedule.builder.BuilderResult(path, None)


def ran(line):
    """A record is [workload, [trace, seconds of each run, ...]]; a schedule that failed took 1e10 s."""
    seconds = json.loads(line)[1][1]
    return bool(seconds) and max(seconds) < 1e9


def job_cpu(target):
    return target.attrs.get("mcpu", "cpu of that kind")


def apply(module, work):
    passes = [
        relax.transform.MetaScheduleApplyDatabase(str(work)),
        relax.transform.SplitLayoutRewritePreproc(),
        relax.transform.FoldConstant(),
        relax.transform.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(passes)(module)


def outputs(model, module):
    """ONNX names with the types and shapes that the importer worked out."""
    answer = module["main"].ret_ty
    fields = answer.fields if isinstance(answer, relax.TupleType) else [answer]
    described = []
    for value, field in zip(model.graph.output, fields, strict=True):
        kind = str(getattr(field, "dtype", ""))
        if kind not in DATATYPES or not isinstance(field.shape, relax.ShapeExpr):
            raise Refusal(f"output {value.name!r} is no numeric tensor of a fixed shape: {field}")
        shape = [int(size) for size in field.shape.values]
        described.append({"name": value.name, "datatype": DATATYPES[kind], "shape": shape})
    return described


def calls(module):
    """Compiled functions that the model calls, each as often as it does."""
    count = 0

    def visit(expression):
        nonlocal count
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.call_tir"):
            count += 1

    relax.analysis.post_order_visit(module["main"], visit)
    return count


def link(output, objects, **_):
    """LLVM's linker as ziglang carries it. Nothing but objects goes in: the C library, the runtime and
    libm are found by the process that loads the result, so no sysroot of the target is needed."""
    command = [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-s", "--build-id=none", "-o", output]
    done = subprocess.run([*command, *objects], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refusal(f"the linker failed: {done.stderr.strip().splitlines()[-1]}")


link.output_format = "so"


def main():
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    try:
        result = compile_model(folder, job)
    except Refusal as exc:
        result = {"error": str(exc), "hint": exc.hint}
    except Exception as exc:  # the compiler raises what it likes about a model it cannot take
        words = [line.strip() for line in str(exc).splitlines() if line.strip()]
        result = {"error": f"TVM: {type(exc).__name__}: {(words or ['no words'])[-1][:300]}", "hint": ""}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
