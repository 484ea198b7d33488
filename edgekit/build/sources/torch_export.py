"""PyTorch torch.export archives: graphs as JSON, weights as bytes.

Loading runs no code: what torch would unpickle is held to tensors (weights_only), and shape expressions
that look like code are refused, both in the tool environment.
"""

from __future__ import annotations

from edgekit.build.sources._base import Format, Look


def _recognise(look: Look) -> bool:
    return "models/model.json" in look.members or "serialized_exported_program.json" in look.members


FORMAT = Format(
    name="torch-export",
    title="PyTorch torch.export (.pt2)",
    env="torch",
    script="from_torch",
    packages=("torch", "onnxscript", "onnx"),
    recognise=_recognise,
)
