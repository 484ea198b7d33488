"""Where downloaded bundles lie on the disk, and which of them are still needed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from edgekit.wire import Assignment
from edgekit_agent.store import Store


class Shelf:
    """The folder of bundles, and folders of files that are named as these are."""

    def __init__(self, folder: Path, store: Store, *beside: Path) -> None:
        self._folder, self._store, self._beside = folder, store, beside

    def make(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, assignment: Assignment) -> Path:
        """Where the bundle of an assignment lies, or will."""
        return self._folder / f"{assignment.bundle_digest.removeprefix('sha256:')}.edgekit"

    def clean(self) -> None:
        """Remove what belongs to no release and no job."""
        kept = {self._store.release(role) for role in ("current", "previous", "candidate")}
        jobs = (self._store.active(), self._store.queued())
        named = [r.assignment for r in kept if r is not None] + [j.assignment for j in jobs if j is not None]
        names = {self.path(assignment).stem for assignment in named}
        folders = [one for one in (self._folder, *self._beside) if one.is_dir()]
        for path in (path for folder in folders for path in folder.iterdir()):
            if path.name.removesuffix(".part").rpartition(".")[0] not in names:
                with suppress(OSError):
                    path.unlink()
