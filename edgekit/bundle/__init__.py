"""The bundle: one file that carries a release's variants, certificates, SBOM, keys and signature.

docs/bundle-format.md describes the bytes.
"""

from __future__ import annotations

from edgekit.bundle.contents import VariantEntry
from edgekit.bundle.documents import Predicate
from edgekit.bundle.reader import Bundle, open
from edgekit.bundle.registry import from_oci
from edgekit.bundle.selection import in_range, select
from edgekit.bundle.writer import to_bytes, write

__all__ = [
    "Bundle",
    "Predicate",
    "VariantEntry",
    "from_oci",
    "in_range",
    "open",
    "select",
    "to_bytes",
    "write",
]
