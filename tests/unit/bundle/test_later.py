"""Fields that join a document later leave what was written before as it was."""

import dataclasses
from dataclasses import dataclass, field

import pytest

from edgekit import codec
from edgekit.bundle.documents import VariantProvenance
from edgekit.errors import FormatError


@dataclass(frozen=True)
class First:
    name: str


@dataclass(frozen=True)
class Second:
    name: str
    score: float = field(default=1.0, metadata=codec.LATER)
    parts: tuple[str, ...] = field(default=(), metadata=codec.LATER)
    table: dict[str, str] = field(default_factory=dict, metadata=codec.LATER)


def test_defaults_are_not_written() -> None:
    assert codec.to_json(Second("a")) == codec.to_json(First("a"))
    full = Second("a", 0.5, ("x",), {"k": "v"})
    assert codec.from_canonical_json(Second, codec.to_json(full), what="it") == full


def test_old_documents_are_read_and_have_one_spelling() -> None:
    assert codec.from_canonical_json(Second, b'{"name":"a"}', what="it") == Second("a")
    for text in (b'{"name":"a","score":1.0}', b'{"name":"a","parts":[]}', b'{"name":"a","table":{}}'):
        with pytest.raises(FormatError, match="canonical"):
            codec.from_canonical_json(Second, text, what="it", error=FormatError)


def test_the_provenance_of_version_0_1_keeps_its_bytes() -> None:
    recorded = VariantProvenance("v", "s", "c", "d", "reference", "1.0", "fp32", {})
    assert set(codec.to_plain(recorded)) == {
        "variant", "source_sha256", "calibration_sha256", "dataset_sha256", "engine", "engine_version",
        "precision", "options",
    }  # fmt: skip
    told = dataclasses.replace(recorded, tools={"onnx": "1.23.2"})
    assert codec.to_plain(told)["tools"] == {"onnx": "1.23.2"}
