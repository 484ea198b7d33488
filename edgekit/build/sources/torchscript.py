"""TorchScript archives: their own small language, no Python.

Two of its operators read and write files; a program that has them needs trust. The files do not say the
shapes of their inputs: `--shape` does.
"""

from __future__ import annotations

from edgekit.build.sources._base import Format, Look


def _recognise(look: Look) -> bool:
    return "constants.pkl" in look.members and any(m.startswith("code/") for m in look.members)


FORMAT = Format(
    name="torchscript",
    title="TorchScript",
    env="torch",
    script="from_torch",
    packages=("torch", "onnx"),
    recognise=_recognise,
)
