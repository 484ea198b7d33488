"""ONNX Runtime's mobile format: a graph that needs no ONNX parser, and the operators that it needs.

`required_operators.config` is what a reduced build of onnxruntime is configured with
(`build.sh --include_ops_by_config`), so that a phone carries no operator in vain.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path


def to_ort(onnx: bytes) -> dict[str, bytes]:
    """`model.ort` and `required_operators.config`. Optimised for any CPU, not for this one."""
    from onnxruntime.tools.convert_onnx_models_to_ort import (
        OptimizationStyle,
        convert_onnx_models_to_ort,
    )

    with tempfile.TemporaryDirectory(prefix="edgekit-ort-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(onnx)
        with contextlib.redirect_stdout(io.StringIO()):
            convert_onnx_models_to_ort(
                folder,
                optimization_styles=[OptimizationStyle.Fixed],
                # ARM keeps the graph as it is where x86 would lay weights out for its own kernels.
                target_platform="arm",
                enable_type_reduction=True,
            )
        (config,) = folder.glob("*.config")
        # Comments at its head name the temporary folder.
        lines = [line for line in config.read_text().splitlines() if not line.startswith("#")]
        operators = "\n".join(lines) + "\n"
        return {
            "model.ort": (folder / "model.ort").read_bytes(),
            "required_operators.config": operators.encode(),
        }
