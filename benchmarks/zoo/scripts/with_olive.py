"""Inside Olive's environment: one pass over a model, as its documentation describes it.

    python with_olive.py MODEL.onnx ROWS.npz FOLDER PASS OPTIONS

PASS: e.g. OnnxStaticQuantization; OPTIONS: its configuration as JSON. Writes FOLDER/model.onnx.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from olive.data.component.dataset import BaseDataset
from olive.data.registry import Registry
from olive.workflows import run


def main() -> None:
    model, rows, folder, name, options = sys.argv[1:]
    with np.load(rows) as file:
        arrays = {key: file[key] for key in file.files}
    count = len(next(iter(arrays.values())))

    class Rows(BaseDataset):
        """A row without its batch dimension, which the loader adds, and a label that nothing reads."""

        def __getitem__(self, index):
            return {key: array[index] for key, array in arrays.items()}, 0

    @Registry.register_dataset("edgekit_rows")
    def _rows(**_options):
        return Rows(range(count))

    settings = {"type": name, **json.loads(options)}
    if name == "OnnxStaticQuantization":
        settings["data_config"] = "rows"
    work = Path(folder) / "olive"
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": model},
            "data_configs": [
                {
                    "name": "rows",
                    "type": "DataContainer",
                    "load_dataset_config": {"type": "edgekit_rows"},
                    "pre_process_data_config": {"type": "skip_pre_process"},
                    "post_process_data_config": {"type": "skip_post_process"},
                    "dataloader_config": {"type": "default_dataloader", "batch_size": 1},
                }
            ],
            "passes": {"quantize": settings},
            "engine": {
                "evaluate_input_model": False,
                "log_severity_level": 3,
                "output_dir": str(work),
                "cache_dir": str(Path(folder) / "cache"),
            },
        }
    )
    (made,) = work.rglob("*.onnx")
    shutil.copyfile(made, Path(folder) / "model.onnx")


if __name__ == "__main__":
    main()
