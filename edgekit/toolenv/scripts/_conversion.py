"""What every converter script shares: probe inputs, the answer's files, and one line for whatever goes wrong.

job.json: format, name (of the file or folder under in/), shapes {input: [sizes]}, trust
out/model.onnx; out/probes.npz: "K/iJ" and "K/oJ", input and output J of probe K, from the source framework
result.json: inputs, outputs (ONNX names, in the probes' order), batch (whether it takes several rows),
    slack (per output, how far the source framework's own kernels are apart on the probes)
"""

import json
import sys
from pathlib import Path

import numpy as np

TRUST = "if you trust where the file comes from, add --trust-source; it then runs isolated, without network"
OPSET = 17


class Refusal(Exception):
    """The model is at fault: message and hint, a line each."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.hint = hint


def main(convert):
    """Run `convert(path, job) -> (onnx model, probes, batch[, slack])`, leave its answer in the folder."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    try:
        model, probes, batch, *slack = convert(folder / "in" / job["name"], job)
        result = _written(folder / "out", model, probes, batch) | {"slack": slack[0] if slack else []}
    except Refusal as exc:
        result = {"error": str(exc), "hint": exc.hint}
    except MemoryError:
        result = {"error": "needs more memory than its limit", "hint": "convert it on a larger machine"}
    except Exception as exc:  # the libraries raise what they like about a file they cannot read
        words = next((line.strip() for line in str(exc).splitlines() if line.strip()), "")
        result = {"error": f"{job['format']}: {type(exc).__name__}: {words[:300]}", "hint": ""}
    (folder / "result.json").write_text(json.dumps(result))


def fixed(name, shape, job):
    """`shape` (open sizes None) with the user's hint; only the first dimension may stay open."""
    hint = job["shapes"].get(name)
    if hint:
        if len(hint) != len(shape):
            raise Refusal(f"--shape {name} gives {len(hint)} dimensions, the model has {len(shape)}")
        shape = [*shape[:1], *(have or want for have, want in zip(shape[1:], hint[1:], strict=True))]
    loose = [place for place, size in enumerate(shape) if not size and place]
    if loose:
        example = ",".join(str(size or "N") if place else "1" for place, size in enumerate(shape))
        said = [size or "?" for size in shape]
        raise Refusal(
            f"input {name!r} has no fixed size in dimension {loose[0]} of {said}",
            f"say it: --shape {name}={example}",
        )
    return list(shape)


def sample(generator, dtype, shape):
    """Plausible values: standard normal, bytes of the whole range, small indices."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def probes_of(ports, run, rows=(1, 1, 3)):
    """[(inputs, outputs)], and whether several rows work.

    `ports`: (dtype, shape) per input, an open batch as None; `run`: list of inputs to list of outputs.
    """
    generator = np.random.default_rng(20260101)
    probes, batch = [], bool(ports) and all(shape and not shape[0] for _, shape in ports)
    for count in rows:
        if count > 1 and not batch:
            continue
        inputs = [sample(generator, dtype, [shape[0] or count, *shape[1:]]) for dtype, shape in ports]
        try:
            outputs = [np.asarray(value) for value in run(inputs)]
        except Exception:
            if count == 1:
                raise
            batch = False  # an open batch in name only
            continue
        if count > 1 and any(not one.ndim or len(one) != count for one in outputs):
            batch = False
            continue
        probes.append((inputs, outputs))
    return probes, batch


def renamed(model, inputs, outputs):
    """The graph's own names of inputs and outputs (in order) replaced by those that people know."""
    from onnx import helper

    have = [value.name for value in (*model.graph.input, *model.graph.output)]
    wish = _unique([*inputs, *outputs])
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    pairs = {old: new for old, new in zip(have, wish, strict=True) if old != new and new not in taken}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.name = pairs.get(value.name, value.name)
    _rename(model.graph, pairs, helper)
    return model


def _rename(graph, pairs, helper):
    for node in graph.node:
        node.input[:] = [pairs.get(name, name) for name in node.input]
        node.output[:] = [pairs.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):  # a branch or loop sees the names around it
                _rename(attribute.g, pairs, helper)


def _unique(names):
    seen = set()
    for place, name in enumerate(names):
        while name in seen:
            name += "_"
        seen.add(name)
        names[place] = name
    return names


def _written(out, model, probes, batch):
    try:
        data = model.SerializeToString(deterministic=True)
    except Exception:
        raise Refusal("the converted model is larger than 2 GiB, more than one ONNX file can hold") from None
    (out / "model.onnx").write_bytes(data)
    arrays = {}
    for number, (inputs, outputs) in enumerate(probes):
        arrays |= {f"{number}/i{place}": value for place, value in enumerate(inputs)}
        arrays |= {f"{number}/o{place}": value for place, value in enumerate(outputs)}
    np.savez(out / "probes.npz", **arrays)
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        "inputs": [value.name for value in model.graph.input if value.name not in weights],
        "outputs": [value.name for value in model.graph.output],
        "batch": batch,
        "probes": len(probes),
    }
