"""Call a user's function on arrays. Needs NumPy only.

job.json: function, names (per argument); in/function.py, in/arrays.npz; out/result.npz
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path

import numpy as np


def call(folder: Path) -> dict:
    job = json.loads((folder / "job.json").read_text())
    path = folder / "in" / "function.py"
    spec = importlib.util.spec_from_file_location("function", path)
    module = importlib.util.module_from_spec(spec)
    with np.load(folder / "in" / "arrays.npz", allow_pickle=False) as file:
        arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
    taken = iter(arrays)
    groups = [{name: next(taken) for name in names} for names in job["names"]]
    if len(groups) == 3:  # a metric: outputs, truth, reference
        groups[1] = groups[1].get("truth")
    try:
        spec.loader.exec_module(module)
        answer = getattr(module, job["function"])(*groups)
        named = answer if isinstance(answer, dict) else {"value": answer}
        named = {str(name): np.asarray(value) for name, value in named.items()}
    except Exception as exc:  # the user's code raises what it likes
        where = traceback.extract_tb(exc.__traceback__)[-1]
        return {"error": f"line {where.lineno}: {type(exc).__name__}: {exc}", "hint": "mend the function"}
    if any(array.dtype == object for array in named.values()) or not named:
        return {"error": "returned something that is no array of numbers or strings", "hint": ""}
    np.savez(folder / "out" / "result.npz", *named.values())
    return {"names": list(named)}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "result.json").write_text(json.dumps(call(place)))
