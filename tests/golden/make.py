"""Write the golden bundle. Run once per bundle version: `python -m tests.golden.make`; the files are then
never written again, because whoever holds a bundle of that version must be able to read it for ever."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekit import bundle
from edgekit.bundle.model import ReleaseInfo
from edgekit.crypto.keyring import KeyRing
from edgekit.crypto.keys import SealingKey
from tests.support.bundles import two_variants

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    """Keys and bundle into `folder`. Raises InputError when there are keys already."""
    ring = KeyRing.at(folder)
    ring.generate()
    hybrid = SealingKey.generate("MLKEM768_X25519")
    hybrid.save(folder / "hybrid.pem")
    bundle.write(
        folder / "tiny.edgekit",
        ReleaseInfo("tiny", "1.0.0", "2026-01-01T00:00:00Z", {"note": "golden"}),
        two_variants(),
        signer=ring.signing_key(),
        recipients=[ring.recipient_key(), hybrid.public()],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "v1")
