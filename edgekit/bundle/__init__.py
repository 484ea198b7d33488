"""The bundle: one file that carries a release's variants, certificates, SBOM, keys and signature.

docs/bundle-format.md describes the bytes. Names are loaded when first used: a serving process needs
`edgekit.bundle.model` only, and starts 0.15 s sooner without the cryptography below the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "Bundle": "reader",
    "Predicate": "documents",
    "VariantEntry": "contents",
    "from_oci": "registry",
    "in_range": "selection",
    "open": "reader",
    "select": "selection",
    "to_bytes": "writer",
    "write": "writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
