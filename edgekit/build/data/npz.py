"""NumPy archives: one array per model input, rows first. Object arrays (pickle) are never loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit.build.data._base import Array, Naming, Place, Stored, Wanted, truth_of
from edgekit.bundle.model import TensorSpec
from edgekit.errors import DataError


def read(place: Place, wanted: Wanted) -> Stored:
    """Raises DataError naming file, array and remedy."""
    stored = arrays(place.path)
    names = _match(place.text, stored, wanted.specs, wanted.naming)
    inputs = {model: stored[name][place.rows] for model, name in names.items()}
    counts = {len(array) for array in inputs.values()}
    if len(counts) != 1 or 0 in counts:
        raise DataError(
            f"{place.text}: {sorted(counts)} rows selected", "every input needs the same rows, at least one"
        )
    labels, label_names = _labels(place, stored, counts.pop(), wanted)
    return Stored(place.text, inputs, labels, label_names)


def arrays(path: Path) -> dict[str, Array]:
    """Every array of the file. Raises DataError for anything else in it."""
    try:
        with path.open("rb") as file:  # NumPy forgets to close what it cannot read
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: one array, not an .npz", "save it with numpy.savez")
            found = {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror or exc}", "check the path") from None
    except Exception as exc:  # zipfile, zlib and NumPy's own parser raise a dozen types
        hint = "save plain arrays with numpy.savez; object arrays (pickle) are never loaded"
        raise DataError(f"{path}: not a NumPy .npz: {str(exc) or type(exc).__name__}", hint) from None
    for name, array in found.items():
        # NumPy hands over members that are no arrays as bytes.
        if not isinstance(array, np.ndarray) or array.ndim == 0:
            raise DataError(f"{path}: {name!r} is not an array with rows", "save arrays with numpy.savez")
    return found


def _match(
    text: str, stored: Mapping[str, Array], specs: Sequence[TensorSpec], naming: Naming
) -> dict[str, str]:
    """Model input -> array name. A lone input takes the lone array that is not the labels."""
    others = [name for name in stored if name != naming.labels]
    found = {spec.name: naming.inputs.get(spec.name, spec.name) for spec in specs}
    if len(specs) == 1 and not naming.inputs and specs[0].name not in stored and len(others) == 1:
        found = {specs[0].name: others[0]}
    missing = [f"{model!r} (array {name!r})" for model, name in found.items() if name not in stored]
    if missing:
        hint = "name arrays with --input INPUT=ARRAY and --labels ARRAY"
        raise DataError(f"{text}: nothing for input {missing[0]}; it holds {sorted(stored)}", hint)
    return found


def _labels(
    place: Place, stored: Mapping[str, Array], rows: int, wanted: Wanted
) -> tuple[Array | None, tuple[str, ...]]:
    name = wanted.naming.labels
    if wanted.truth == "none" or (wanted.truth == "maybe" and name not in stored):
        return None, ()
    if name not in stored:
        hint = f"it holds {sorted(stored)}; name the array with --labels"
        raise DataError(f"{place.text}: no labels (array {name!r})", hint)
    return truth_of(place.text, stored[name][place.rows], rows, wanted)
