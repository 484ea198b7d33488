"""Where candidates are built: in processes here, or on a Dask cluster that somebody already runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from edgekit.build import worker
from edgekit.errors import EngineMissing, InputError, SystemFault

Builder = Callable[[worker.Job], tuple[dict[str, Any], dict[str, bytes]]]


@contextmanager
def builder(text: str) -> Iterator[Builder]:
    """The function that runs a build job: "" here, "dask" on a cluster started for this build, or
    "dask:ADDRESS" (e.g. dask:tls://scheduler:8786) on a running one.

    The cluster's workers need edgekit with the same tool versions. Raises InputError for anything else,
    EngineMissing without `distributed`, SystemFault when no scheduler answers.
    """
    kind, _, address = text.partition(":")
    if not text:
        yield worker.run
    elif kind == "dask":
        with _client(address) as client:
            yield lambda job: client.submit(worker.run, job, pure=False).result()
    else:
        raise InputError(f"--executor {text!r}: no such executor", "dask, or dask:ADDRESS")


@contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        import distributed
    except ImportError as exc:
        hint = "pip install 'edgekit-toolkit[dask]'"
        raise EngineMissing(f"cannot build on Dask: {exc}", hint) from None
    try:
        # Jobs start processes of their own, so one thread-based worker per core is enough.
        options: dict[str, Any] = {"processes": False, "dashboard_address": None}
        make: Any = distributed.Client
        client = make(address, timeout=10) if address else make(**options)
    except (OSError, ValueError) as exc:
        raise SystemFault(f"no Dask scheduler answers at {address}: {exc}", "check the address") from None
    with client:
        yield client
