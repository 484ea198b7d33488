"""What runs on the emulated CPU: `python inside.py FOLDER PATH...` answers rows and makes golden samples.

Standalone, for the device's Python: of edgekit it imports what a device has (`edgekit.runtimes` and below).
FOLDER holds job.json, files/ and inputs.npz; result.json and out/ come back. PATHs lead to the libraries.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

GLANCE_ROWS = 3


def main(folder: Path) -> dict[str, Any]:
    """Raises EdgekitError when the engine refuses, or when it would take too long."""
    import numpy as np

    from edgekit import codec, host, runtimes
    from edgekit.errors import DataError
    from edgekit.profile import Verify
    from edgekit.runtimes import _answers, _golden

    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "inputs.npz", allow_pickle=False) as file:
        arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
    inputs = dict(zip(job["inputs"], arrays, strict=False))
    reference = arrays[-1] if len(arrays) > len(inputs) else None  # classes of the source model
    paths = [path for path in (folder / "files").rglob("*") if path.is_file()]
    files = {str(path.relative_to(folder / "files")): path.read_bytes() for path in paths}
    runtime = runtimes.get(job["engine"])
    version = runtime.version()
    session = runtime.load(files, job["options"])
    rows = len(next(iter(inputs.values())))
    begin = time.monotonic()
    _answers.answer(session, {name: array[:GLANCE_ROWS] for name, array in inputs.items()})
    each_s = (time.monotonic() - begin) / min(rows, GLANCE_ROWS)
    if each_s * rows > job["budget_s"]:
        raise DataError(
            f"a row takes {each_s:.1f} s on the emulated CPU, {rows} rows {each_s * rows:.0f} s, "
            f"{job['budget_s']:.0f} allowed",
            f"--emulate-rows {max(int(job['budget_s'] / each_s), 1)}",
        )
    outputs = _answers.answer(session, inputs)
    if reference is None and job["classify"]:
        reference = _golden.classes(next(iter(outputs.values())))
    verify = codec.from_plain(Verify, job["verify"], what="verify")
    golden, made = _golden.make(session, inputs, reference, verify)
    for name, data in {**made, **_answers.pack_outputs(outputs)}.items():
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_bytes(data)
    here = host.read()
    return {
        "engine_version": version,
        "outputs": list(outputs),
        "golden": codec.to_plain(golden),
        "coverage": session.coverage(),
        "cpu": here.cpu,
        "seconds_per_row": each_s,
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    sys.path[:0] = sys.argv[2:]
    from edgekit.errors import EdgekitError

    try:
        result = main(place)
    except EdgekitError as exc:
        result = {"error": exc.message, "hint": exc.hint}
    (place / "result.json").write_text(json.dumps(result))
