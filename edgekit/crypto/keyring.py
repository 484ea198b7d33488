"""The folder in which a person's keys lie: builder.pem/.pub sign, recipient.pem/.pub open."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgekit.crypto.keys import Kem, RecipientKey, SealingKey, SigningKey, VerifyKey
from edgekit.errors import InputError
from edgekit.files import storage_fault, write_bytes


def default_folder() -> Path:
    """$EDGEKIT_KEYS, or ~/.config/edgekit/keys (XDG_CONFIG_HOME is honoured)."""
    if chosen := os.environ.get("EDGEKIT_KEYS"):
        return Path(chosen)
    configuration = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(configuration) / "edgekit" / "keys"


@dataclass(frozen=True)
class KeyRing:
    """Paths and loaders; nothing is read before it is asked for."""

    folder: Path

    @classmethod
    def at(cls, folder: Path | None = None) -> KeyRing:
        return cls(folder or default_folder())

    @property
    def builder_private(self) -> Path:
        return self.folder / "builder.pem"

    @property
    def builder_public(self) -> Path:
        return self.folder / "builder.pub"

    @property
    def recipient_private(self) -> Path:
        return self.folder / "recipient.pem"

    @property
    def recipient_public(self) -> Path:
        return self.folder / "recipient.pub"

    def signing_key(self) -> SigningKey:
        return SigningKey.load(self.builder_private)

    def verify_key(self) -> VerifyKey:
        return VerifyKey.load(self.builder_public)

    def sealing_key(self) -> SealingKey:
        return SealingKey.load(self.recipient_private)

    def recipient_key(self) -> RecipientKey:
        return RecipientKey.load(self.recipient_public)

    def present(self) -> list[Path]:
        """The key files that exist."""
        paths = (self.builder_private, self.builder_public, self.recipient_private, self.recipient_public)
        return [path for path in paths if path.exists()]

    def generate(self, kem: Kem = "X25519") -> None:
        """Make both key pairs. Raises InputError when one exists: keys are never overwritten."""
        if present := self.present():
            raise InputError(
                f"{present[0]} exists already",
                "keys are never overwritten; choose another --dir or move it away",
            )
        self._make_builder()
        self._make_recipient(kem)

    def ensure(self) -> bool:
        """Make the key pairs that are missing (first use). True when a key was made.

        Raises InputError when half of a pair is missing, so that no public key stops matching silently.
        """
        made = False
        for private, public, make in (
            (self.builder_private, self.builder_public, self._make_builder),
            (self.recipient_private, self.recipient_public, self._make_recipient),
        ):
            if private.exists() != public.exists():
                have, lack = (private, public) if private.exists() else (public, private)
                raise InputError(f"{have} is there but {lack.name} is not", "restore it or move both away")
            if not private.exists():
                make()
                made = True
        return made

    def _make_builder(self) -> None:
        self._make_folder()
        key = SigningKey.generate()
        key.save(self.builder_private)
        write_bytes(self.builder_public, key.public().to_pem())

    def _make_recipient(self, kem: Kem = "X25519") -> None:
        self._make_folder()
        key = SealingKey.generate(kem)
        key.save(self.recipient_private)
        write_bytes(self.recipient_public, key.public().to_pem())

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise storage_fault(self.folder, exc) from None
