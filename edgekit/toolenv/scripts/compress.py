"""Compress a PyTorch model with training: prune, sparsify, distil, quantize, in the order asked for.

job.json: model and teacher ({"file"} or {"code", "function", "weights", "partial"}; teacher may be null),
    trust, inputs, outputs (ONNX names), shapes (one row of each input), original (bool), steps, and
    options {seed, batch, threads, time_limit_s, augment {flip, crop}}
in/rows.npz: i0.., truth; v0.., vtruth where there are validation rows; in/: the models' files
out/model.onnx; out/original.onnx when asked for
result.json: epochs [{step, epoch, loss, seconds, cpu_seconds, accuracy or error}], steps (what each did),
    before, after {parameters, macs}
"""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _conversion as tool
import _torch_lowbit
import _torch_model
import _torch_prune
import numpy as np
import torch
from _torch_train import Trainer
from torch.fx.experimental.optimization import fuse


def compress(folder, job):
    options, shapes = job["options"], job["shapes"]
    warnings.simplefilter("ignore")
    torch.set_num_threads(options["threads"])
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads any
    torch.manual_seed(options["seed"])
    model = _torch_model.load(job["model"], folder / "in", shapes, job["trust"])
    teacher = job["teacher"] and _torch_model.load(job["teacher"], folder / "in", shapes, job["trust"])
    teacher = teacher and fuse(teacher, no_trace=True)  # faster: it never trains
    trainer = Trainer(options, *_rows(folder / "in" / "rows.npz", len(shapes)), teacher)
    before = _torch_model.size(model, shapes) | trainer.validate(model)
    if job["original"]:
        _write(folder / "out" / "original.onnx", model, job)
    done = []
    for number, step in enumerate(job["steps"], 1):
        label = f"step {number} ({step['method']})"
        told = {}
        if step["method"] == "prune":
            told = _torch_prune.prune(model, trainer, step, shapes, label)
        elif step["method"] == "sparsify":
            told = _torch_lowbit.sparsify(model, trainer, step, label)
        elif step["method"] == "quantize":
            model = _torch_lowbit.quantize(model, trainer, step, label)
        else:
            trainer.fit(model, step, step["epochs"], label)
        done.append({"method": step["method"], **_torch_model.size(model, shapes), **told})
    after = _torch_model.size(model, shapes) | trainer.validate(model)
    _write(folder / "out" / "model.onnx", model, job)
    return {"epochs": trainer.log, "steps": done, "before": before, "after": after}


def _rows(path, inputs):
    with np.load(path, allow_pickle=False) as file:
        stored = {name: torch.from_numpy(file[name]) for name in file.files}
    parts = []
    for prefix, truth in (("i", "truth"), ("v", "vtruth")):
        rows = [stored[f"{prefix}{place}"] for place in range(inputs)] if truth in stored else None
        parts.append((rows, stored.get(truth)))
    (rows, truth), (held, held_truth) = parts
    return rows, truth, None if held is None else (held, held_truth)


def _write(path, model, job):
    made = _torch_model.to_onnx(model.eval(), job["shapes"], job["inputs"], job["outputs"])
    path.write_bytes(made.SerializeToString(deterministic=True))


def main():
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    try:
        result = compress(folder, job)
    except tool.Refusal as exc:
        result = {"error": str(exc), "hint": exc.hint}
    except MemoryError:
        result = {"error": "needs more memory than its limit", "hint": "lower batch, or give fewer rows"}
    except Exception as exc:  # the libraries raise what they like about a model they cannot take
        words = next((line.strip() for line in str(exc).splitlines() if line.strip()), "")
        result = {"error": f"PyTorch: {type(exc).__name__}: {words[:300]}", "hint": ""}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
